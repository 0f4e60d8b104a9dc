{{- define "stepwedge.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- /* Short enough for what is added to it: names of Pods and Jobs are at most 63 characters. */}}
{{- define "stepwedge.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "stepwedge.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "stepwedge.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* list CONTEXT COMPONENT */}}
{{- define "stepwedge.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "stepwedge.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- /* list CONTEXT COMPONENT */}}
{{- define "stepwedge.labels" -}}
{{- $root := index . 0 -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{ include "stepwedge.selectorLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- end }}

{{- define "stepwedge.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "stepwedge.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- /* list CONTEXT IMAGE: registry/repository@digest, or :tag */}}
{{- define "stepwedge.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $name := $image.repository -}}
{{- with $root.Values.images.registry }}{{ $name = printf "%s/%s" (trimSuffix "/" .) $name }}{{ end -}}
{{- if $image.digest }}{{ $name }}@{{ $image.digest }}
{{- else }}{{ $name }}:{{ default $root.Chart.AppVersion $image.tag }}
{{- end }}
{{- end }}

{{- define "stepwedge.serviceImage" -}}
{{- include "stepwedge.image" (list . .Values.images.service) }}
{{- end }}

{{- /* The inference server's own image where one is named, such as the one with CUDA. */}}
{{- define "stepwedge.inferenceImage" -}}
{{- $own := .Values.images.inference -}}
{{- $image := .Values.images.service -}}
{{- if or $own.repository $own.tag $own.digest }}
{{- $image = dict "repository" (default $image.repository $own.repository) "tag" $own.tag "digest" $own.digest }}
{{- end }}
{{- include "stepwedge.image" (list . $image) }}
{{- end }}
