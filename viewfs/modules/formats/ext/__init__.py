"""A read-only reader of ext2, ext3 and ext4, from whatever bytes can be read at an offset: see `volume.Volume`."""
