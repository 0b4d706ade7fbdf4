// Cluster DNS for tests and for playing: answers for Services as Kubernetes'
// specification of DNS says (A records of cluster IPs and of headless Services'
// pods, a pod's own name by hostname or dashed address, CNAMEs of ExternalName).
// It knows no other names and forwards nothing.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	slicelisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	// Short, since tests move pods and ask at once.
	ttlSeconds = 1
	// A client asks again over UDP when its question is lost; answers are small.
	datagramBytes = 1232
)

type answerer struct {
	// Without dots at its ends, such as cluster.local.
	domain   string
	services corelisters.ServiceLister
	slices   slicelisters.EndpointSliceLister
}

func main() {
	listen := flag.String("listen", "127.0.0.1:5353", "where to answer over UDP")
	domain := flag.String("domain", "cluster.local", "the cluster's domain")
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	flag.Parse()

	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		log.Fatalf("cannot read --kubeconfig: %v", err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		log.Fatalf("cannot talk to the API server: %v", err)
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	answers := &answerer{
		domain:   *domain,
		services: factory.Core().V1().Services().Lister(),
		slices:   factory.Discovery().V1().EndpointSlices().Lister(),
	}
	background := context.Background()
	factory.Start(background.Done())
	factory.WaitForCacheSync(background.Done())

	socket, err := net.ListenPacket("udp", *listen)
	if err != nil {
		log.Fatalf("cannot listen: %v", err)
	}
	log.Printf("answering for %s on %s", *domain, *listen)
	question := make([]byte, datagramBytes)
	for {
		length, peer, err := socket.ReadFrom(question)
		if err != nil {
			log.Printf("cannot read a question: %v", err)
			time.Sleep(time.Second)
			continue
		}
		if answer := answers.answer(question[:length]); answer != nil {
			if _, err := socket.WriteTo(answer, peer); err != nil {
				log.Printf("cannot answer %v: %v", peer, err)
			}
		}
	}
}

// answer is the packet for a question's packet, or nothing for what is no question.
func (a *answerer) answer(packet []byte) []byte {
	var parser dnsmessage.Parser
	header, err := parser.Start(packet)
	if err != nil || header.Response {
		return nil
	}
	question, err := parser.Question()
	if err != nil {
		return nil
	}
	asked := strings.ToLower(strings.TrimSuffix(question.Name.String(), "."))
	alias, addresses, known := a.resolve(asked)
	answer := dnsmessage.Header{ID: header.ID, Response: true, Authoritative: true, RecursionDesired: header.RecursionDesired, RecursionAvailable: true}
	if !known {
		answer.RCode = dnsmessage.RCodeNameError
	}
	builder := dnsmessage.NewBuilder(nil, answer)
	builder.EnableCompression()
	owner := question.Name
	record := func() dnsmessage.ResourceHeader {
		return dnsmessage.ResourceHeader{Name: owner, Class: dnsmessage.ClassINET, TTL: ttlSeconds}
	}
	if builder.StartQuestions() != nil || builder.Question(question) != nil || builder.StartAnswers() != nil {
		return nil
	}
	if alias != "" {
		target, err := dnsmessage.NewName(alias + ".")
		if err != nil || builder.CNAMEResource(record(), dnsmessage.CNAMEResource{CNAME: target}) != nil {
			return nil
		}
		owner = target
	}
	for _, address := range addresses {
		four := net.ParseIP(address).To4()
		if four == nil || question.Type != dnsmessage.TypeA {
			continue
		}
		if builder.AResource(record(), dnsmessage.AResource{A: [4]byte(four)}) != nil {
			return nil
		}
	}
	message, err := builder.Finish()
	if err != nil {
		return nil
	}
	return message
}

// resolve follows one alias, says its name, and whether the name is known at all.
func (a *answerer) resolve(name string) (alias string, addresses []string, known bool) {
	service, host := a.service(name)
	if service == nil {
		return "", nil, false
	}
	if service.Spec.Type == core.ServiceTypeExternalName {
		alias = strings.ToLower(service.Spec.ExternalName)
		if service, host = a.service(alias); service == nil {
			return alias, nil, true
		}
	}
	if service.Spec.ClusterIP != core.ClusterIPNone {
		return alias, service.Spec.ClusterIPs, host == ""
	}
	selector := labels.SelectorFromSet(labels.Set{discovery.LabelServiceName: service.Name})
	slices, err := a.slices.EndpointSlices(service.Namespace).List(selector)
	if err != nil {
		return alias, nil, false
	}
	for _, slice := range slices {
		for _, endpoint := range slice.Endpoints {
			ready := endpoint.Conditions.Ready == nil || *endpoint.Conditions.Ready || service.Spec.PublishNotReadyAddresses
			for _, address := range endpoint.Addresses {
				own := strings.ReplaceAll(address, ".", "-")
				if endpoint.Hostname != nil {
					own = *endpoint.Hostname
				}
				if ready && (host == "" || host == own) {
					addresses = append(addresses, address)
				}
			}
		}
	}
	return alias, addresses, host == "" || len(addresses) > 0
}

// service is the Service of [host.]name.namespace.svc.domain, and the host.
func (a *answerer) service(name string) (*core.Service, string) {
	rest, found := strings.CutSuffix(name, ".svc."+a.domain)
	if !found {
		return nil, ""
	}
	parts := strings.Split(rest, ".")
	host := ""
	if len(parts) == 3 {
		host, parts = parts[0], parts[1:]
	}
	if len(parts) != 2 {
		return nil, ""
	}
	service, err := a.services.Services(parts[1]).Get(parts[0])
	if err != nil {
		return nil, ""
	}
	return service, host
}
