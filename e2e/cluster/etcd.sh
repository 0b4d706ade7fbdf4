#!/usr/bin/env bash
# Puts an etcd of three members for tenants on the cluster, with TLS, so that there
# is something to stand proxies before: https://etcd-{0,1,2}.etcd.etcd.svc:2379.
#
# usage: e2e/cluster/etcd.sh FOLDER IMAGE
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
folder=$1 image=$2
say "an etcd for tenants"
members=$(for index in 0 1 2; do printf '%setcd-%s=http://etcd-%s.etcd.etcd.svc:2380' "${comma:-}" $index $index && comma=,; done)
{
  kubectl create namespace etcd
  kubectl create secret generic etcd-server -n etcd --from-file=tls.crt="$folder/pki/etcd-server.crt" \
    --from-file=tls.key="$folder/pki/etcd-server.key" --from-file=ca.crt="$folder/pki/etcd-ca.crt"
  kubectl apply -f - <<END
apiVersion: v1
kind: Service
metadata: {name: etcd, namespace: etcd}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector: {app: etcd}
  ports: [{name: client, port: 2379}, {name: peer, port: 2380}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: etcd, namespace: etcd}
spec:
  serviceName: etcd
  replicas: 3
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: etcd}}
  template:
    metadata: {labels: {app: etcd}}
    spec:
      enableServiceLinks: false
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 5
      containers:
      - name: etcd
        image: $image
        imagePullPolicy: Never
        args:
        - --name=\$(POD_NAME)
        - --data-dir=/data/etcd
        - --listen-client-urls=https://0.0.0.0:2379
        - --advertise-client-urls=https://\$(POD_NAME).etcd.etcd.svc:2379
        - --listen-peer-urls=http://0.0.0.0:2380
        - --initial-advertise-peer-urls=http://\$(POD_NAME).etcd.etcd.svc:2380
        - --initial-cluster=$members
        - --listen-metrics-urls=http://0.0.0.0:2381
        - --cert-file=/tls/tls.crt
        - --key-file=/tls/tls.key
        - --trusted-ca-file=/tls/ca.crt
        - --client-cert-auth
        - --unsafe-no-fsync
        env: [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
        readinessProbe: {httpGet: {path: /readyz, port: 2381}, periodSeconds: 2}
        volumeMounts: [{name: data, mountPath: /data}, {name: tls, mountPath: /tls, readOnly: true}]
      volumes: [{name: data, emptyDir: {}}, {name: tls, secret: {secretName: etcd-server}}]
END
} >>"$folder/log/kubectl.log"
