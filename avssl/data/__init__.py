"""Reading samples of shards: their order, decoding in workers, and batches of views on the device."""
