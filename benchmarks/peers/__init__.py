"""What people use instead, each in an environment of its own: the scripts here import nothing of the project."""
