"""Character devices that come with viewfs."""
