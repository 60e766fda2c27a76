"""Publishing a model: its folder, its card and license, and the upload to the Hub."""
