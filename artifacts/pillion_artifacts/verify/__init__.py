"""Keys, signatures, the trust policy, and the verification of versions."""
