"""What a rollout leaves behind for people: the certificate, and the page that tells what happened."""
