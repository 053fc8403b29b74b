"""The stages of the pipeline, one thin entry point each; dvc.yaml calls them."""
