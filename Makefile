# What a person or CI can do with this repository; each target works from any
# directory (make -C or -f), and all but the clusters without root.

root := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
target := $(or $(CARGO_TARGET_DIR),$(root)/target)
phase := $(root)/tools/phase.sh
cluster := $(or $(ETCD_PROXY_CLUSTER),$(target)/cluster)

# Where the installers of Rust and Go put them; CI shells often leave these out.
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/local/go/bin

# The programs that cargo test leaves behind serve the demo and etcd's suites too.
debug_proxy := ETCD_PROXY_BIN=$(target)/debug/etcd-proxy

# A static binary runs on any Linux of its kind; naming the platform keeps the flag from the build's own helpers.
# Paths of this machine stay out of the programs, so that the same source gives the same bytes elsewhere.
static := -C target-feature=+crt-static --remap-path-prefix=$(root)=etcd-proxy --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=cargo

.PHONY: help build deb release image cluster cluster-down demo test lint conformance older-kubernetes versus versus-gateway fanout prerequisites

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(root)/Makefile | expand -t 16

build: prerequisites ## The static release binary, target/release/etcd-proxy
	cd $(root) && host=$$(rustc -vV | sed -n 's/^host: //p') && \
	RUSTFLAGS="$(static)" cargo build --locked --release --target $$host -p etcd-proxy && \
	install -D $(target)/$$host/release/etcd-proxy $(target)/release/etcd-proxy

image: prerequisites ## The image of proxy and operator, target/image.tar; no registry, no root, the same bytes each time
	cd $(root) && host=$$(rustc -vV | sed -n 's/^host: //p') && \
	RUSTFLAGS="$(static)" cargo build --locked --release --target $$host -p etcd-proxy -p etcd-proxy-operator && \
	$(root)/deploy/image/build.sh $(target)/$$host/release $(target)/image.tar

cluster: prerequisites ## A whole Kubernetes on this machine, with the operator, to play with; IMAGE=target/image.tar for the release build
	$(if $(IMAGE)$(PROGRAMS),,cd $(root) && cargo build --locked -p etcd-proxy -p etcd-proxy-operator)
	@PROGRAMS=$(or $(PROGRAMS),$(target)/debug) ETCD_PROXY_CLUSTER=$(cluster) $(root)/e2e/cluster/up.sh

cluster-down: ## Takes it away again
	@ETCD_PROXY_CLUSTER=$(cluster) $(root)/e2e/cluster/down.sh

deb: build ## The Debian package with its systemd unit, target/etcd-proxy.deb
	@$(root)/deploy/debian/build.sh $(target)/release/etcd-proxy $(target)/etcd-proxy.deb

release: prerequisites ## Everything of a release for amd64 and arm64 with checksums and lists of parts, target/release-files
	@$(root)/deploy/release.sh $(target)/release-files

demo: prerequisites ## Three etcd members, two proxies and a short session; KEEP=1 leaves them running
	@$(root)/e2e/demo.sh

test: prerequisites ## Everything that CI checks: all tests, the demo, and a part of etcd's own suites
	@$(phase) "etcd 3.7, 3.6, 3.5 and its suites" $(root)/tools/build.sh etcd-3.7 etcd-3.6 etcd-3.5 conformance
	@$(phase) "Kubernetes' control plane" $(root)/tools/build.sh kubernetes
	@$(phase) "Helm 3, Helm 4 and kubeconform" $(root)/tools/build.sh helm-4 helm-3 kubeconform
	@$(phase) "clients in other languages" $(root)/e2e/clients/setup.sh
	@cd $(root) && $(phase) "cargo build" cargo build --locked --workspace --all-targets
	@cd $(root) && $(phase) "cargo test" cargo test --locked --workspace
	@$(phase) "a real node" $(root)/e2e/cluster/test.sh
	@$(phase) "demo" env $(debug_proxy) $(root)/e2e/demo.sh
	@$(phase) "etcd's own suites, fast part" env $(debug_proxy) SUBSET=fast $(root)/e2e/conformance/run.sh

# A second library of cryptography would double what must be watched for advisories.
lint: prerequisites ## rustfmt, clippy and the dependencies; silence is good
	cd $(root) && cargo fmt --all --check && cargo clippy --locked --workspace --all-targets -- -D warnings
	cd $(root) && cargo clippy --locked -p etcd-proxy-e2e --test node --test older -- -D warnings
	cd $(root) && for other in ring openssl-sys native-tls; do \
		if cargo tree --locked --workspace --edges all --invert $$other 2>/dev/null | grep .; then exit 1; fi; done

conformance: prerequisites ## etcd's own test suites through the proxy, into docs/conformance.md; SUBSET=fast for five minutes of them
	@$(root)/e2e/conformance/run.sh

older-kubernetes: prerequisites ## Kinds, chart and webhook on the oldest Kubernetes that is promised; builds its control plane once
	@cd $(root) && cargo build --locked -p etcd-proxy -p etcd-proxy-operator && cargo test --locked -p etcd-proxy-e2e --test older

versus: prerequisites ## Direct, through etcd's proxy, through ours: one run, one table
	@$(root)/e2e/versus/run.sh

versus-gateway: prerequisites ## The gateway beside etcd's own and HAProxy: one run, one table
	@$(root)/e2e/versus/gateway.sh

fanout: prerequisites ## Many watchers, through etcd's proxy and through ours: CPU for each event, memory, growth
	@$(root)/e2e/fanout/run.sh

prerequisites:
	@$(root)/tools/prerequisites.sh
