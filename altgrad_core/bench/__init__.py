"""What this machine does: native GEMMs checked against emulated ones, and speeds beside BF16 and peers."""
