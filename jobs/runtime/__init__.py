"""What runs inside containers: the launchers of the toolkits, as scripts, and the check of requirements.txt."""
