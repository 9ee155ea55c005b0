"""Folders of files, on this machine and in S3, and copies between them."""
