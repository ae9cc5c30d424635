"""What is measured of audio, video and images: by `stats` of a shard folder, by `facts` of every sample."""
