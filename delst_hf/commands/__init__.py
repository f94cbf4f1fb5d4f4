"""The sub-commands of `delst`, one file each."""
