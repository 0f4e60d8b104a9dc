{{- /* A Job's spec that sends the reference set through the Service. list CONTEXT ARGUMENTS */}}
{{- define "stepwedge.constancyJob" -}}
{{- $root := index . 0 -}}
# Status 1 says that the system has moved. Asking again would not make it otherwise. What could not be asked is.
backoffLimit: 3
podFailurePolicy:
  rules:
    - action: FailJob
      onExitCodes: {containerName: constancy, operator: In, values: [1]}
      onPodConditions: []  # asked for by the schema of Kubernetes 1.28
activeDeadlineSeconds: {{ include "stepwedge.constancySeconds" $root }}
ttlSecondsAfterFinished: 86400
template:
  metadata:
    labels:
      {{- include "stepwedge.labels" (list $root "constancy") | nindent 6 }}
      {{- with $root.Values.podLabels }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
  spec:
    {{- include "stepwedge.podBasics" (list $root (include "stepwedge.serviceAccountName" $root)) | nindent 4 }}
    restartPolicy: Never
    {{- include "stepwedge.modelsInit" $root | nindent 4 }}
    containers:
      - name: constancy
        image: {{ include "stepwedge.serviceImage" $root }}
        imagePullPolicy: {{ $root.Values.images.pullPolicy }}
        args: {{ toJson (index . 1) }}
        env:
          - {name: STEPWEDGE_CONFIG, value: /etc/stepwedge/stepwedge.yaml}
          # Where it sends the reference set: to a listener, by its Service.
          - {name: STEPWEDGE_NODE__HOST, value: {{ include "stepwedge.fullname" $root }}-listener}
          - {name: STEPWEDGE_NODE__PORT, value: {{ $root.Values.listener.service.port | quote }}}
          {{- with $root.Values.extraEnv }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
        securityContext:
          {{- include "stepwedge.containerSecurity" $root | nindent 10 }}
        resources:
          {{- toYaml $root.Values.constancy.resources | nindent 10 }}
        volumeMounts:
          {{- include "stepwedge.mounts" (list $root "settings" "data" "database" "models" "siteKey" "trust") | nindent 10 }}
    volumes:
      {{- include "stepwedge.volumes" (list $root "settings" "data" "database" "models" "siteKey" "trust") | nindent 6 }}
{{- end }}

{{- /* After which a run is taken away: a stuck one would keep every later one from starting. The roles' start, the pod's
  own, and as long as the studies of each model may take. */}}
{{- define "stepwedge.constancySeconds" -}}
{{- $constancy := default dict .Values.settings.constancy -}}
{{- $seconds := float64 (dig "timeout_seconds" 600 $constancy) -}}
{{- add (mul (len .Values.models.run) (ceil $seconds | int)) .Values.probes.startupSeconds 180 }}
{{- end }}
