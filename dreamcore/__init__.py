"""DeepDream: pictures and tensors in, pictures, tensors and scores out.

This package knows no S3, no Prefect, no command line and sets up no logging.
"""
