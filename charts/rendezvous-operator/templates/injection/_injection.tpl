{{/* library.delivery with `auto` decided: image volumes are on by default from Kubernetes 1.35. */}}
{{- define "rdzv.libraryDelivery" -}}
{{- if ne .Values.library.delivery "auto" -}}
{{- .Values.library.delivery -}}
{{- else if semverCompare ">=1.35.0-0" .Capabilities.KubeVersion.Version -}}
image-volume
{{- else -}}
init
{{- end -}}
{{- end -}}

{{/*
Which pods reach injection at all, for policy and webhook alike: those that opted in, but none of this release's own or the
cluster's, so that nothing the cluster stands on can wait for us.
*/}}
{{- define "rdzv.injectionSelectors" -}}
namespaceSelector:
  matchExpressions:
    - key: kubernetes.io/metadata.name
      operator: NotIn
      values: [kube-system, {{ .Release.Namespace }}]
    {{- with .Values.watchNamespaces }}
    - key: kubernetes.io/metadata.name
      operator: In
      values: {{ toJson . }}
    {{- end }}
objectSelector:
  matchExpressions:
    - key: rdzv.dev/rendezvous
      operator: Exists
{{- end -}}

{{- define "rdzv.injectionMatchConditions" -}}
- name: names-a-rendezvous
  expression: object.metadata.labels['rdzv.dev/rendezvous'] != ''
# What the API server has of a static pod must stay as the kubelet made it.
- name: not-a-mirror-pod
  expression: "!('kubernetes.io/config.mirror' in object.metadata.?annotations.orValue({}))"
{{- end -}}

{{/* The Secret with the webhook's certificate. */}}
{{- define "rdzv.webhookSecret" -}}
{{- if eq .Values.webhook.certificates.mode "secret" -}}
{{- .Values.webhook.certificates.secretName -}}
{{- else -}}
{{- include "rdzv.fullname" . }}-webhook-{{ ternary "tls" "certificate" (eq .Values.webhook.certificates.mode "operator") -}}
{{- end -}}
{{- end -}}

{{/* Whether the operator makes the webhook's certificates: "true" or nothing. */}}
{{- define "rdzv.operatorCertifies" -}}
{{- if and (eq (include "rdzv.injectionMode" .) "webhook") (eq .Values.webhook.certificates.mode "operator") -}}
true
{{- end -}}
{{- end -}}
