"""/dev/crypto, with the interface of cryptodev-linux."""
