"""Dreams of one photograph or of noise on this machine, without a run: images, previews of a network, atlases."""
