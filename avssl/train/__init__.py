"""What accompanies training: metrics, the online probe, collapse warnings, settings of the device."""
