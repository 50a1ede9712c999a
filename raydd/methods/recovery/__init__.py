"""What SRe2L, G-VBSM and EDC share: images recovered from networks that were trained on real ones."""
