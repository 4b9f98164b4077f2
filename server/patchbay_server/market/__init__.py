"""What models cost and how good they are taken to be: data that ships with the package, and how to look it up."""
