// The Go client, clientv3, through the proxy. One line on stdout per check that
// held; on the first that does not, a sentence on stderr and exit code 1.
//
// usage: go-client [all | auth | leader | leasing]
//
// The environment says where things are: PROXY and ETCD are addresses
// (host:port, ETCD several with commas), CA, CERT and KEY are PEM files (without
// CA all is plaintext), and
// NAMESPACE is the prefix that the proxy puts before every key.
package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"reflect"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// patience bounds one check. It only has to be longer than a loaded two-core
// machine needs.
const patience = 40 * time.Second

// the parts that checks work on: a client through the proxy, and one past it.
type parts struct {
	proxy, etcd *clientv3.Client
	namespace   string
}

type check struct {
	proves string
	run    func(ctx context.Context, p parts)
}

func main() {
	suites := map[string][]check{
		"all":     join(kvChecks, txnChecks, watchChecks, leaseChecks, concurrencyChecks, layerChecks),
		"auth":    authChecks,
		"leader":  leaderChecks,
		"leasing": leasingChecks,
	}
	suite := "all"
	if len(os.Args) > 1 {
		suite = os.Args[1]
	}
	checks, known := suites[suite]
	if !known {
		fmt.Fprintf(os.Stderr, "no suite is called %q\n", suite)
		os.Exit(2)
	}
	p := parts{
		proxy:     dial(setting("PROXY"), "", ""),
		etcd:      dial(setting("ETCD"), "", ""),
		namespace: setting("NAMESPACE"),
	}
	for _, check := range checks {
		run(check, p)
	}
	p.proxy.Close()
	p.etcd.Close()
}

func run(check check, p parts) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	defer func() {
		if failure := recover(); failure != nil {
			text, expected := failure.(failed)
			if !expected {
				panic(failure)
			}
			fmt.Fprintf(os.Stderr, "FAILED %s: %s\n", check.proves, string(text))
			os.Exit(1)
		}
	}()
	check.run(ctx, p)
	fmt.Println("ok", check.proves)
}

func setting(name string) string {
	value := os.Getenv(name)
	if value == "" {
		fmt.Fprintf(os.Stderr, "the environment variable %s is missing\n", name)
		os.Exit(2)
	}
	return value
}

func tlsConfig() *tls.Config {
	if os.Getenv("CA") == "" {
		return nil
	}
	info := transport.TLSInfo{CertFile: setting("CERT"), KeyFile: setting("KEY"), TrustedCAFile: setting("CA")}
	config, err := info.ClientConfig()
	must(err)
	return config
}

// dial makes a client of addresses; without a user it sends no token.
func dial(addresses, user, password string) *clientv3.Client {
	scheme := "https://"
	if os.Getenv("CA") == "" {
		scheme = "http://"
	}
	var endpoints []string
	for _, address := range strings.Split(addresses, ",") {
		endpoints = append(endpoints, scheme+address)
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:   endpoints,
		TLS:         tlsConfig(),
		Username:    user,
		Password:    password,
		DialTimeout: patience,
		Logger:      zap.NewNop(),
	})
	must(err)
	return client
}

// failed is what a check panics with when it does not hold.
type failed string

func fail(format string, arguments ...any) {
	panic(failed(fmt.Sprintf(format, arguments...)))
}

func must(err error) {
	if err != nil {
		fail("an error that should not be: %v", err)
	}
}

func value[T any](result T, err error) T {
	must(err)
	return result
}

func equal(what string, got, want any) {
	if !reflect.DeepEqual(got, want) {
		fail("%s is %#v and should be %#v", what, got, want)
	}
}

func holds(condition bool, format string, arguments ...any) {
	if !condition {
		fail(format, arguments...)
	}
}

// refused wants exactly this error, as clientv3 makes it of status and text.
func refused(err, want error) {
	holds(want != nil, "etcd itself makes no error where one should be")
	if err == nil {
		fail("there is no error where %q should be", want)
	}
	if err.Error() != want.Error() {
		fail("the error is %q and should be %q", err, want)
	}
}

// direct reads a key of the proxy's clients past the proxy.
func (p parts) direct(ctx context.Context, key string) string {
	answer := value(p.etcd.Get(ctx, p.namespace+key))
	holds(len(answer.Kvs) == 1, "etcd has no key %q", p.namespace+key)
	return string(answer.Kvs[0].Value)
}

// keysOf lists keys and values as "key=value".
func keysOf(answer *clientv3.GetResponse) []string {
	texts := []string{}
	for _, kv := range answer.Kvs {
		texts = append(texts, string(kv.Key)+"="+string(kv.Value))
	}
	return texts
}

// next takes from a channel until the context ends.
func next[T any](ctx context.Context, what string, channel <-chan T) T {
	select {
	case item, open := <-channel:
		holds(open, "%s ended", what)
		return item
	case <-ctx.Done():
		fail("%s brought nothing", what)
		panic("fail does not return")
	}
}

// ended waits until a channel is closed.
func ended[T any](ctx context.Context, what string, channel <-chan T) {
	for {
		select {
		case _, open := <-channel:
			if !open {
				return
			}
		case <-ctx.Done():
			fail("%s did not end", what)
		}
	}
}

func join(lists ...[]check) []check {
	var all []check
	for _, list := range lists {
		all = append(all, list...)
	}
	return all
}
