{{- /* What all pods have in common. list CONTEXT COMPONENT VALUES-OF-THE-COMPONENT */}}
{{- define "stepwedge.podMetadata" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index . 2 -}}
labels:
  {{- include "stepwedge.labels" (list $root $component) | nindent 2 }}
  {{- with $root.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  # A change of the settings rolls the pods.
  checksum/settings: {{ include "stepwedge.settings" $root | sha256sum }}
  {{- if has $component (list "stepwatch" "single") }}
  checksum/watch-settings: {{ include "stepwedge.watchSettings" $root | sha256sum }}
  {{- end }}
  {{- if and $root.Values.monitoring.scrapeAnnotations (has $component (list "listener" "worker" "inference" "stepwatch" "page")) }}
  prometheus.io/scrape: "true"
  prometheus.io/path: /metrics
  prometheus.io/port: {{ index (dict "inference" "3000" "stepwatch" "9108") $component | default "8080" | quote }}
  {{- end }}
  {{- with $values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- /* list CONTEXT SERVICE-ACCOUNT-NAME */}}
{{- define "stepwedge.podBasics" -}}
{{- $root := index . 0 -}}
serviceAccountName: {{ index . 1 }}
automountServiceAccountToken: false
# Kubernetes would put variables named STEPWEDGE_… into the environment, where settings are read from.
enableServiceLinks: false
{{- with $root.Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
securityContext:
  {{- toYaml $root.Values.podSecurityContext | nindent 2 }}
{{- end }}

{{- /* list CONTEXT COMPONENT VALUES-OF-THE-COMPONENT */}}
{{- define "stepwedge.podPlacement" -}}
{{- $root := index . 0 -}}
{{- $values := index . 2 -}}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "stepwedge.selectorLabels" (list $root (index $ 1)) | nindent 8 }}
  {{- end }}
{{- end }}

{{- define "stepwedge.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* How often a start is looked at, each five seconds, before the container is started again. */}}
{{- define "stepwedge.startupLooks" -}}
{{- divf .Values.probes.startupSeconds 5 | ceil }}
{{- end }}

{{- /* /livez and /readyz of a named port. Before a role answers, packages are verified and the spool is compared.
  list CONTEXT PORT */}}
{{- define "stepwedge.probes" -}}
{{- $root := index . 0 -}}
{{- $port := index . 1 -}}
startupProbe:
  httpGet: {path: /livez, port: {{ $port }}}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: {{ include "stepwedge.startupLooks" $root }}
livenessProbe:
  httpGet: {path: /livez, port: {{ $port }}}
  periodSeconds: 15
  timeoutSeconds: 10
  failureThreshold: 4
readinessProbe:
  httpGet: {path: /readyz, port: {{ $port }}}
  periodSeconds: 5
  timeoutSeconds: 10
  failureThreshold: 3
{{- end }}

{{- /* The init container that copies the packages out of their image. */}}
{{- define "stepwedge.modelsInit" -}}
{{- $models := .Values.models.image -}}
{{- if and $models.repository (eq $models.mount "copy") }}
initContainers:
  - name: models
    image: {{ include "stepwedge.image" (list . $models) }}
    imagePullPolicy: {{ .Values.images.pullPolicy }}
    command: [cp, -R, {{ printf "%s/." (trimSuffix "/" $models.path) }}, /copy/]
    securityContext:
      {{- include "stepwedge.containerSecurity" . | nindent 6 }}
    resources:
      requests: {cpu: 50m, memory: 32Mi}
      limits: {memory: 128Mi}
    volumeMounts:
      - {name: models, mountPath: /copy}
{{- end }}
{{- end }}

{{- /* list CONTEXT RESOURCES: with the GPU in the limits, where there is one. */}}
{{- define "stepwedge.inferenceResources" -}}
{{- $gpu := (index . 0).Values.inference.gpu -}}
{{- $resources := deepCopy (index . 1) -}}
{{- if $gpu.enabled }}
{{- $limits := default dict $resources.limits }}
{{- $_ := set $limits $gpu.resource $gpu.count }}
{{- $_ := set $resources "limits" $limits }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{- /* The same on a loopback port of the pod, which the node's agent cannot ask: a program in the container does.
  list CONTEXT PORT */}}
{{- define "stepwedge.ownProbes" -}}
{{- $root := index . 0 -}}
{{- $port := index . 1 -}}
{{- range $probe, $asked := dict "startupProbe" "livez" "livenessProbe" "livez" "readinessProbe" "readyz" }}
{{ $probe }}:
  exec:
    command: [python, -I, -c, "import urllib.request as u; u.urlopen('http://127.0.0.1:{{ $port }}/{{ $asked }}', timeout=8)"]
  periodSeconds: {{ ternary 5 30 (eq $probe "startupProbe") }}
  timeoutSeconds: 10
  failureThreshold: {{ ternary (include "stepwedge.startupLooks" $root) "3" (eq $probe "startupProbe") }}
{{- end }}
{{- end }}
