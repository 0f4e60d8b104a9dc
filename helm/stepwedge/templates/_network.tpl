{{- /* Rules of network policies. Each is an item of `ingress` or `egress`, or nothing. */}}

{{- define "stepwedge.networkMetadata" -}}
{{- $root := index . 0 -}}
name: {{ include "stepwedge.fullname" $root }}-{{ index . 1 }}
labels:
  {{- include "stepwedge.labels" . | nindent 2 }}
{{- end }}

{{- /* list CONTEXT COMPONENT PORT DIRECTION COMPONENTS…: our own pods */}}
{{- define "stepwedge.ownPeers" -}}
{{- $root := index . 0 -}}
- {{ index . 2 }}:
    {{- range slice . 3 }}
    - podSelector:
        matchLabels:
          {{- include "stepwedge.selectorLabels" (list $root .) | nindent 10 }}
    {{- end }}
  ports:
    - {protocol: TCP, port: {{ index . 1 }}}
{{- end }}

{{- /* list PORT DIRECTION PEERS: as the values name them */}}
{{- define "stepwedge.namedPeers" -}}
{{- if index . 2 }}
- {{ index . 1 }}:
    {{- toYaml (index . 2) | nindent 4 }}
  ports:
    - {protocol: TCP, port: {{ index . 0 }}}
{{- end }}
{{- end }}

{{- define "stepwedge.toDns" -}}
{{- with .Values.networkPolicy.dns }}
- to:
    {{- toYaml . | nindent 4 }}
  ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
{{- end }}
{{- end }}

{{- define "stepwedge.toDatabase" -}}
{{- include "stepwedge.namedPeers" (list (include "stepwedge.databasePort" .) "to" .Values.networkPolicy.database) }}
{{- end }}

{{- define "stepwedge.databasePort" -}}
{{- $host := (urlParse .Values.database.url).host -}}
{{- if regexMatch ":[0-9]+$" $host }}{{ regexFind "[0-9]+$" $host }}{{ else }}5432{{ end }}
{{- end }}

{{- define "stepwedge.toCollector" -}}
{{- $endpoint := (default dict .Values.settings.tracing).endpoint -}}
{{- if $endpoint }}
{{- $parsed := urlParse $endpoint }}
{{- $port := ternary "443" "80" (eq $parsed.scheme "https") }}
{{- if regexMatch ":[0-9]+$" $parsed.host }}{{ $port = regexFind "[0-9]+$" $parsed.host }}{{ end }}
{{- include "stepwedge.namedPeers" (list $port "to" .Values.networkPolicy.collector) }}
{{- end }}
{{- end }}

{{- /* The PACS: each destination's address and port, or the CIDRs where its host is a name. */}}
{{- define "stepwedge.toDestinations" -}}
{{- range .Values.settings.destinations }}
- to:
    {{- if regexMatch "^[0-9]+(\\.[0-9]+){3}$" .host }}
    - ipBlock: {cidr: {{ .host }}/32}
    {{- else }}
    {{- range $.Values.networkPolicy.destinations }}
    - ipBlock: {cidr: {{ . }}}
    {{- end }}
    {{- end }}
  ports:
    - {protocol: TCP, port: {{ .port }}}
{{- end }}
{{- end }}

{{- define "stepwedge.fromSenders" -}}
- from:
    {{- range .Values.networkPolicy.senders }}
    - ipBlock: {cidr: {{ . }}}
    {{- end }}
  ports:
    - {protocol: TCP, port: 11112}
{{- end }}
