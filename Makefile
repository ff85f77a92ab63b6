# `make` or `make help` lists what there is.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PG_MAJOR ?= 17
DEMO ?= raft
export PG_MAJOR

# The etcd client's build needs protoc; asked only by what compiles.
COMPILE = PROTOC="$$(docker/protoc.sh)"; export PROTOC;

.PHONY: help image images stores demo demo-down test bench chaos sim fmt lint readme binary

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

binary: ## The release binary, target/release/howdah
	@$(COMPILE) cargo build --release --locked --bin howdah

image: binary ## The image howdah:pg$(PG_MAJOR); PG_MAJOR=15, 17 (default) or 18
	@docker/image.sh howdah

images: image
	@docker/image.sh etcd
	@docker/image.sh haproxy

stores: ## The images of the other stores, for bench
	@docker/image.sh consul
	@docker/image.sh zookeeper

demo: images ## Three members and a proxy on this machine; DEMO=consul, etcd, etcd2 or zookeeper for another store
	@case $(DEMO) in consul|zookeeper) docker/image.sh $(DEMO) ;; esac
	@HOWDAH_IMAGE=howdah:pg$(PG_MAJOR) docker/demo.sh up $(DEMO)

demo-down: ## Removes the demo with its data
	@docker/demo.sh down $(DEMO)

test: ## Every test; ends with one line that counts them
	@tests/run.sh

sim: ## The simulator alone; SEEDS=N for more histories
	@$(COMPILE) HOWDAH_SIM_SEEDS=$(SEEDS) cargo test --profile fast --test sim

chaos: ## Harms a cluster at random for MINUTES (10), SEED=N as in an earlier run; ends with a table
	@TIERS=chaos FOLLOW=1 HOWDAH_CHAOS_MINUTES=$(or $(MINUTES),10) HOWDAH_CHAOS_SEED=$(SEED) tests/run.sh

bench: images stores ## Measures fail-over, size and speed; IMAGE=NAME for another image
	@$(COMPILE) HOWDAH_IMAGE=$(IMAGE) cargo bench --profile fast --bench cluster

readme: ## Writes the table of variables into README.md
	@$(COMPILE) HOWDAH_UPDATE=1 cargo test --quiet --test tidy the_readme_has

fmt: ## Formats the code
	@cargo fmt

lint: ## What the tests ask of form: formatting and clippy
	@cargo fmt --check
	@$(COMPILE) cargo clippy --all-targets --locked -- -D warnings
