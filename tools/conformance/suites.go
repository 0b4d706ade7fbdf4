//go:build suites

// Package conformance pins etcd's own test suites. They are test-only
// packages, which go.mod's tool lines cannot name, so these imports hold the
// modules that they need in go.mod and go.sum.
package conformance

import (
	_ "go.etcd.io/etcd/tests/v3/common"
	_ "go.etcd.io/etcd/tests/v3/e2e"
	_ "go.etcd.io/etcd/tests/v3/framework/e2e"
)
