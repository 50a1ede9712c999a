"""Self-contained HTML pages: building blocks, charts as SVG, and the page of a run. From data to text, nothing else."""
