{{/*
The name that every object of a release carries: the release's own name when it already says what this is.
63 characters is the limit of a label and of a Service; what is appended to it (-webhook, …) has to fit too.
*/}}
{{- define "rdzv.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 48 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 48 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 48 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels of every object. */}}
{{- define "rdzv.labels" -}}
{{ include "rdzv.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: {{ .Chart.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/*
What a selector may use: what never changes during the life of a release. Deployments of one release differ by
app.kubernetes.io/component, which the caller adds.
*/}}
{{- define "rdzv.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Reference of the operator's image (the webhook runs from it too). */}}
{{- define "rdzv.image" -}}
{{- include "rdzv.reference" (dict "image" .Values.image "default" .Chart.AppVersion) -}}
{{- end -}}

{{/* Reference of the library image, which injection mounts into training pods. */}}
{{- define "rdzv.libraryImage" -}}
{{- include "rdzv.reference" (dict "image" .Values.library.image "default" .Chart.AppVersion) -}}
{{- end -}}

{{/* A tag that is a digest (sha256:…) is joined with @, as references want it. */}}
{{- define "rdzv.reference" -}}
{{- $tag := default .default .image.tag -}}
{{- printf "%s%s%s" .image.repository (ternary "@" ":" (hasPrefix "sha256:" $tag)) $tag -}}
{{- end -}}

{{/* Pod security context that the `restricted` Pod Security Standard admits. */}}
{{- define "rdzv.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Container security context that the `restricted` Pod Security Standard admits. */}}
{{- define "rdzv.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* injection.mode with `auto` decided: policy | webhook. */}}
{{- define "rdzv.injectionMode" -}}
{{- if ne .Values.injection.mode "auto" -}}
{{- .Values.injection.mode -}}
{{- else if .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy" -}}
policy
{{- else -}}
webhook
{{- end -}}
{{- end -}}

{{/*
Name of the Lease that says which process writes. The same for every release of a namespace, so that a second one stands by; but
releases that each serve namespaces of their own have nothing to do with each other.
*/}}
{{- define "rdzv.lease" -}}
{{- ternary (include "rdzv.fullname" .) .Chart.Name (not (empty .Values.watchNamespaces)) -}}
{{- end -}}

{{/*
The Secret with the key that all certificates follow from. The same for every release of a namespace, as the Lease: who takes over
has to make the same ones.
*/}}
{{- define "rdzv.rootSecret" -}}
{{- include "rdzv.lease" . }}-root
{{- end -}}
