.DEFAULT_GOAL := help
help: ## show the targets
	@grep -E '^[a-z]+: .*##' Makefile | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12
check: ## lint, types and all tests, as CI runs them
	bash scripts/test.sh
format: ## put the code into its form
	.venv/bin/python -m ruff check --fix . && .venv/bin/python -m ruff format .
quickstart: ## pre-train, probe and fine-tune on the built-in data
	bash scripts/quickstart.sh
.PHONY: help check format quickstart
