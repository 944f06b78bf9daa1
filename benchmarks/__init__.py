"""Speed and memory of ercfusion against literal writings of the published algorithms; see README.md."""
