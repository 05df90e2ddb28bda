"""What happens to an update on its way from a client to the average: stages, one a file."""
