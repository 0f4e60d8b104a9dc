{{- /* stepwedge.yaml: what the site says, and over it what only the chart can know. The image of the service lacks what
  the monitor needs, so that `serve` starts none beside the one in a container of its own. */}}
{{- define "stepwedge.settings" -}}
{{- $single := eq .Values.mode "single" -}}
{{- $own := dict "data_dir" "/data" "watch" (dict "enabled" .Values.stepwatch.enabled) "models" .Values.models.run -}}
{{- $_ := set $own "node" (dict "host" "0.0.0.0" "port" 11112) -}}
{{- with .Values.siteKey.existingSecret }}
{{- $_ := set $own "site_key_file" (printf "/run/secrets/stepwedge-site/%s" $.Values.siteKey.key) }}
{{- end }}
{{- with .Values.trust.files }}
{{- $keys := list }}
{{- range . }}{{ $keys = append $keys (printf "/run/secrets/stepwedge-trust/%s" .) }}{{ end }}
{{- $_ := set $own "trust" (dict "keys" $keys) }}
{{- end }}
{{- with .Values.tracing.existingSecret }}
{{- $_ := set $own "tracing" (dict "headers_file" (printf "/run/secrets/stepwedge-tracing/%s" $.Values.tracing.key)) }}
{{- end }}
{{- $inference := dict "device" (ternary "cuda" "cpu" .Values.inference.gpu.enabled) -}}
{{- if $single }}
{{- $_ := set $own "inference" $inference }}
{{- /* On loopback: kubectl port-forward reaches it, and nobody else. */}}
{{- $_ := set $own "http" (dict "host" "127.0.0.1" "port" 8080) }}
{{- else }}
{{- $url := printf "http://%s-inference:3000" (include "stepwedge.fullname" .) }}
{{- $_ := set $own "inference" (merge $inference (dict "host" "0.0.0.0" "port" 3000 "url" $url)) }}
{{- $_ := set $own "http" (dict "host" "0.0.0.0" "port" 8080) }}
{{- $database := dict "url" .Values.database.url "upgrade_at_start" (not .Values.migration.enabled) }}
{{- $_ := set $database "password_file" "/run/secrets/stepwedge-database/password" }}
{{- $_ := set $own "database" $database }}
{{- if not .Values.constancy.enabled }}
{{- /* Nobody waits for runs that nothing makes. */}}
{{- $_ := set $own "constancy" (dict "enabled" false) }}
{{- end }}
{{- end }}
{{- toYaml (mergeOverwrite (deepCopy .Values.settings) $own) }}
{{- end }}

{{- /* stepwatch.yaml */}}
{{- define "stepwedge.watchSettings" -}}
{{- $own := dict "data_dir" "/data/watch" "models" .Values.models.run -}}
{{- $http := dict "port" 9108 -}}
{{- if eq .Values.mode "single" }}
{{- $_ := set $own "database_url" "sqlite:////data/db/stepwedge.sqlite" }}
{{- $_ := set $http "host" "127.0.0.1" }}
{{- else }}
{{- /* The password comes by PGPASSWORD. */}}
{{- $_ := set $own "database_url" (.Values.database.url | replace "postgresql://" "postgresql+psycopg://") }}
{{- $_ := set $http "host" "0.0.0.0" }}
{{- end }}
{{- if .Values.stepwatch.token.existingSecret }}
{{- $_ := set $http "token_file" (printf "/run/secrets/stepwatch-token/%s" .Values.stepwatch.token.key) }}
{{- end }}
{{- $_ := set $own "http" $http }}
{{- toYaml (mergeOverwrite (deepCopy .Values.stepwatch.settings) $own) }}
{{- end }}

{{- /* Whole seconds that a role may take to end: what it waits for running work, and some for the rest. */}}
{{- define "stepwedge.graceSeconds" -}}
{{- $worker := default dict .Values.settings.worker -}}
{{- add (ceil (float64 (dig "drain_seconds" 30 $worker)) | int) 30 }}
{{- end }}
