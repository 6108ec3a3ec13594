"""From a safe target to the messages of one kind of arm, one file each."""
