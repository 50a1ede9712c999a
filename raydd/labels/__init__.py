"""Soft labels: how they are made, stored and read (specification edc_sre2l_gvbsm_rded, sections 3, 4 and 9.3)."""
