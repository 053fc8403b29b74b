"""Pages for people: results/report.html, and the page of `dvc plots`. Both draw their charts without any network."""
