{{- /* Names, labels and what follows from several values. */ -}}

{{- define "etcd-proxy.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 53 | trimSuffix "-" -}}
{{- end -}}

{{- /* The release's name; cluster-wide objects add its namespace, so that two releases never meet. */ -}}
{{- define "etcd-proxy.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trimSuffix "-" -}}
{{- else if contains (include "etcd-proxy.name" .) .Release.Name -}}
{{- .Release.Name | trunc 53 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "etcd-proxy.name" .) | trunc 53 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "etcd-proxy.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "etcd-proxy.fullname" .) -}}
{{- end -}}

{{- define "etcd-proxy.selector" -}}
app.kubernetes.io/name: etcd-proxy-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "etcd-proxy.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "etcd-proxy.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: etcd-proxy
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* metadata: (list root name namespace annotations), labels last so that a kind can add its own; no namespace for what has none. */ -}}
{{- define "etcd-proxy.metadata" -}}
{{- $root := index . 0 -}}
name: {{ index . 1 | quote }}
{{- with index . 2 }}
namespace: {{ . }}
{{- end }}
{{- with merge (dict) (index . 3) $root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
labels:
  {{- include "etcd-proxy.labels" $root | nindent 2 }}
{{- end -}}

{{- define "etcd-proxy.serviceAccount" -}}
{{- default (include "etcd-proxy.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- /* image: (list root image), with the chart's appVersion where no tag is given. */ -}}
{{- define "etcd-proxy.image" -}}
{{- $root := index . 0 -}}{{- $image := index . 1 -}}
{{- $image.repository -}}
{{- if $image.digest -}}@{{ $image.digest }}{{- else -}}:{{ default $root.Chart.AppVersion $image.tag }}{{- end -}}
{{- end -}}

{{- define "etcd-proxy.operatorImage" -}}
{{- $_ := required "image.repository is needed: no image is published; `make image` builds one, and your registry holds it" .Values.image.repository -}}
{{- include "etcd-proxy.image" (list . .Values.image) -}}
{{- end -}}

{{- define "etcd-proxy.proxyImage" -}}
{{- if .Values.proxy.image.repository -}}
{{- include "etcd-proxy.image" (list . .Values.proxy.image) -}}
{{- else -}}
{{- include "etcd-proxy.operatorImage" . -}}
{{- end -}}
{{- end -}}

{{- define "etcd-proxy.inlineUpstream" -}}
{{- if kindIs "bool" .Values.policy.inlineUpstream -}}
{{- .Values.policy.inlineUpstream -}}
{{- else -}}
{{- ne .Values.rbac.profile "backends" -}}
{{- end -}}
{{- end -}}

{{- /* The namespaces in which the operator may write Secrets and workloads, unless it may everywhere; with commas between. */ -}}
{{- define "etcd-proxy.homes" -}}
{{- $named := eq .Values.rbac.profile "namespaced" | ternary .Values.rbac.namespaces .Values.rbac.backendNamespaces -}}
{{- $named | default (list .Release.Namespace) | uniq | join "," -}}
{{- end -}}

{{- /* The operator's flag --backend-namespaces: with it, it puts no Secret into tenants' namespaces and looks for none there. */ -}}
{{- define "etcd-proxy.backendNamespaces" -}}
{{- if and (eq .Values.rbac.profile "backends") (not .Values.rbac.tenantNamespaces) -}}
{{- include "etcd-proxy.homes" . -}}
{{- end -}}
{{- end -}}

{{- /*
Who puts sidecars into pods: policy, webhook or off. YAML takes an off without quotes for false. With the profile
namespaced nobody does unless told to, since both ways take rights for the whole cluster to install. The version decides
and not what the server lists, since `helm template` knows of no server's kinds.
*/ -}}
{{- define "etcd-proxy.injection" -}}
{{- $mode := kindIs "bool" .Values.injection.mode | ternary "off" .Values.injection.mode -}}
{{- $can := semverCompare ">=1.36.0-0" .Capabilities.KubeVersion.Version -}}
{{- if ne $mode "auto" -}}{{ $mode }}
{{- else if eq .Values.rbac.profile "namespaced" -}}off
{{- else -}}{{ ternary "policy" "webhook" $can }}{{- end -}}
{{- end -}}

{{- /* The Service of the webhook, and the Secret of its certificate. */ -}}
{{- define "etcd-proxy.webhookService" -}}
{{- printf "%s-webhook" (include "etcd-proxy.fullname" .) -}}
{{- end -}}

{{- /*
An admission policy or its binding, from a committed file: (list root text). Such objects belong to the
whole cluster, so they are named after the release, and policies of an operator that serves some namespaces only keep to these.
*/ -}}
{{- define "etcd-proxy.policies" -}}
{{- $root := index . 0 -}}
{{- range $document := splitList "\n---\n" (index . 1) }}
{{- $object := fromYaml $document }}
{{- if $object.kind }}
{{- $spec := $object.spec }}
{{- if $spec.policyName }}{{ $_ := set $spec "policyName" (include "etcd-proxy.policyName" (list $root $spec.policyName)) }}{{ end }}
{{- if and $spec.matchConstraints (eq $root.Values.rbac.profile "namespaced") }}
{{- $in := dict "key" "kubernetes.io/metadata.name" "operator" "In" "values" (splitList "," (include "etcd-proxy.homes" $root)) }}
{{- $_ := set $spec.matchConstraints "namespaceSelector" (dict "matchExpressions" (list $in)) }}
{{- end }}
---
apiVersion: {{ $object.apiVersion }}
kind: {{ $object.kind }}
metadata:
  {{- include "etcd-proxy.metadata" (list $root (include "etcd-proxy.policyName" (list $root $object.metadata.name)) "" dict) | nindent 2 }}
spec:
  {{- toYaml $spec | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* These names may hold dots and no colons. */ -}}
{{- define "etcd-proxy.policyName" -}}
{{- $root := index . 0 -}}
{{- printf "%s.%s.%s" (index . 1) (include "etcd-proxy.fullname" $root) $root.Release.Namespace -}}
{{- end -}}

{{- /* What an administrator installs, and what else there is. */ -}}
{{- define "etcd-proxy.clusterScope" -}}
{{- if ne .Values.resourceScope "namespace" -}}yes{{- end -}}
{{- end -}}
{{- define "etcd-proxy.namespaceScope" -}}
{{- if ne .Values.resourceScope "cluster" -}}yes{{- end -}}
{{- end -}}

{{- /*
The annotations of an EtcdBackend or EtcdProxy. They outlive the release, so that no uninstall cuts applications off.
Helm cannot make objects of kinds that the same release brings; on the first install they come right after it, as a
hook that already carries the names by which the next upgrade takes them over.
*/ -}}
{{- define "etcd-proxy.objectAnnotations" -}}
{{- $root := index . 0 -}}{{- $kind := index . 1 -}}
helm.sh/resource-policy: keep
{{- if and $root.Values.crds.enabled (include "etcd-proxy.clusterScope" $root) (not ($root.Capabilities.APIVersions.Has (printf "etcdproxy.dev/v1alpha1/%s" $kind))) }}
helm.sh/hook: post-install,post-upgrade
helm.sh/hook-weight: {{ eq $kind "EtcdBackend" | ternary "-1" "0" | quote }}
meta.helm.sh/release-name: {{ $root.Release.Name }}
meta.helm.sh/release-namespace: {{ $root.Release.Namespace }}
{{- end }}
{{- with merge (dict) (index . 2) $root.Values.commonAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* The EtcdBackend of `helm test`, if there is one. */ -}}
{{- define "etcd-proxy.testBackend" -}}
{{- if .Values.tests.backend -}}
{{- .Values.tests.backend -}}
{{- else if .Values.backends -}}
{{- (first .Values.backends).name -}}
{{- end -}}
{{- end -}}

{{- /* The test's EtcdProxies stand in the release's namespace; the operator has to serve it, and give them client certificates. */ -}}
{{- define "etcd-proxy.hasTests" -}}
{{- $isHome := has .Release.Namespace (splitList "," (include "etcd-proxy.homes" .)) -}}
{{- $served := or (eq .Values.rbac.profile "cluster") (and (not (include "etcd-proxy.backendNamespaces" .)) (or $isHome (has .Release.Namespace .Values.rbac.tenantNamespaces))) -}}
{{- if and .Values.tests.enabled $served (include "etcd-proxy.namespaceScope" .) (or (include "etcd-proxy.testBackend" .) .Values.tests.endpoints) -}}yes{{- end -}}
{{- end -}}
