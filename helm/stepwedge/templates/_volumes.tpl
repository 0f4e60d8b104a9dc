{{- /* The volumes of a role, and where they are in the container. Each role gets what it reads, and no more.
  list CONTEXT WHAT, of: settings, data, database, models, siteKey, trust, tracing; of the monitor: watch, watchToken,
  watchData, databaseAuthority (the password is in its environment); page. */}}
{{- define "stepwedge.volumes" -}}
{{- $root := index . 0 -}}
{{- $what := rest . -}}
{{- $values := $root.Values -}}
{{- $name := include "stepwedge.fullname" $root -}}
- name: tmp
  emptyDir: {sizeLimit: 2Gi}
{{- if has "settings" $what }}
- name: settings
  configMap: {name: {{ $name }}-settings}
{{- end }}
{{- if has "watch" $what }}
- name: watch-settings
  configMap: {name: {{ $name }}-stepwatch}
{{- range $mount, $source := $values.stepwatch.mounts }}
- name: mount-{{ $mount }}
  {{- with $source.existingClaim }}
  persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}
  {{- end }}
  {{- with $source.existingConfigMap }}
  configMap: {name: {{ . }}}
  {{- end }}
  {{- with $source.existingSecret }}
  secret: {secretName: {{ . }}, defaultMode: 0440}
  {{- end }}
{{- end }}
{{- end }}
{{- if has "watchToken" $what }}
{{- with $values.stepwatch.token.existingSecret }}
- name: stepwatch-token
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- end }}
{{- if has "data" $what }}
- name: data
  persistentVolumeClaim: {claimName: {{ default (printf "%s-data" $name) $values.data.existingClaim }}}
{{- end }}
{{- if has "watchData" $what }}
- name: data
  persistentVolumeClaim: {claimName: {{ default (printf "%s-stepwatch" $name) $values.stepwatch.data.existingClaim }}}
{{- end }}
{{- if and (has "database" $what) (ne $values.mode "single") }}
- name: database
  secret:
    secretName: {{ $values.database.existingSecret }}
    defaultMode: 0440
    items: [{key: {{ $values.database.passwordKey }}, path: password}]
{{- end }}
{{- if or (has "database" $what) (has "databaseAuthority" $what) }}
{{- with $values.database.ca.existingSecret }}
- name: database-ca
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- with $values.database.ca.existingConfigMap }}
- name: database-ca
  configMap: {name: {{ . }}}
{{- end }}
{{- end }}
{{- if has "models" $what }}
- name: models
  {{- if $values.models.existingClaim }}
  persistentVolumeClaim: {claimName: {{ $values.models.existingClaim }}, readOnly: true}
  {{- else if eq $values.models.image.mount "volume" }}
  image:
    reference: {{ include "stepwedge.image" (list $root $values.models.image) }}
    pullPolicy: {{ $values.images.pullPolicy }}
  {{- else }}
  emptyDir: {sizeLimit: {{ $values.models.image.size }}}
  {{- end }}
{{- with $values.models.policies.existingClaim }}
- name: policies
  persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}
{{- end }}
{{- with $values.models.policies.existingConfigMap }}
- name: policies
  configMap: {name: {{ . }}}
{{- end }}
{{- with $values.models.policies.existingSecret }}
- name: policies
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- end }}
{{- if has "siteKey" $what }}
{{- with $values.siteKey.existingSecret }}
- name: site-key
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- end }}
{{- if has "trust" $what }}
{{- with $values.trust.existingSecret }}
- name: trust
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- with $values.trust.existingConfigMap }}
- name: trust
  configMap: {name: {{ . }}}
{{- end }}
{{- end }}
{{- if has "tracing" $what }}
{{- with $values.tracing.existingSecret }}
- name: tracing
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- end }}
{{- if has "page" $what }}
{{- with $values.page.tokens.existingSecret }}
- name: page-tokens
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- with $values.page.oidc.clientSecret.existingSecret }}
- name: oidc
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- with $values.page.oidc.ca.existingSecret }}
- name: oidc-ca
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- with $values.page.oidc.ca.existingConfigMap }}
- name: oidc-ca
  configMap: {name: {{ . }}}
{{- end }}
{{- end }}
{{- end }}

{{- define "stepwedge.mounts" -}}
{{- $root := index . 0 -}}
{{- $what := rest . -}}
{{- $values := $root.Values -}}
- {name: tmp, mountPath: /tmp}
{{- if has "settings" $what }}
- {name: settings, mountPath: /etc/stepwedge, readOnly: true}
{{- end }}
{{- if has "watch" $what }}
- {name: watch-settings, mountPath: /etc/stepwedge, readOnly: true}
{{- range $mount, $_ := $values.stepwatch.mounts }}
- {name: mount-{{ $mount }}, mountPath: /mnt/{{ $mount }}, readOnly: true}
{{- end }}
{{- end }}
{{- if has "watchToken" $what }}
{{- if $values.stepwatch.token.existingSecret }}
- {name: stepwatch-token, mountPath: /run/secrets/stepwatch-token, readOnly: true}
{{- end }}
{{- end }}
{{- if or (has "data" $what) (has "watchData" $what) }}
- {name: data, mountPath: {{ ternary "/data/watch" "/data" (has "watchData" $what) }}}
{{- end }}
{{- if and (has "database" $what) (ne $values.mode "single") }}
- {name: database, mountPath: /run/secrets/stepwedge-database, readOnly: true}
{{- end }}
{{- if or (has "database" $what) (has "databaseAuthority" $what) }}
{{- if or $values.database.ca.existingSecret $values.database.ca.existingConfigMap }}
- {name: database-ca, mountPath: /run/secrets/stepwedge-database-ca, readOnly: true}
{{- end }}
{{- end }}
{{- if has "models" $what }}
- {name: models, mountPath: /models, readOnly: true}
{{- if or $values.models.policies.existingClaim $values.models.policies.existingConfigMap $values.models.policies.existingSecret }}
- {name: policies, mountPath: /policies, readOnly: true}
{{- end }}
{{- end }}
{{- if has "siteKey" $what }}
{{- if $values.siteKey.existingSecret }}
- {name: site-key, mountPath: /run/secrets/stepwedge-site, readOnly: true}
{{- end }}
{{- end }}
{{- if has "trust" $what }}
{{- if or $values.trust.existingSecret $values.trust.existingConfigMap }}
- {name: trust, mountPath: /run/secrets/stepwedge-trust, readOnly: true}
{{- end }}
{{- end }}
{{- if has "tracing" $what }}
{{- if $values.tracing.existingSecret }}
- {name: tracing, mountPath: /run/secrets/stepwedge-tracing, readOnly: true}
{{- end }}
{{- end }}
{{- if has "page" $what }}
{{- if $values.page.tokens.existingSecret }}
- {name: page-tokens, mountPath: /run/secrets/stepwedge-page, readOnly: true}
{{- end }}
{{- if $values.page.oidc.clientSecret.existingSecret }}
- {name: oidc, mountPath: /run/secrets/stepwedge-oidc, readOnly: true}
{{- end }}
{{- if or $values.page.oidc.ca.existingSecret $values.page.oidc.ca.existingConfigMap }}
- {name: oidc-ca, mountPath: /run/secrets/stepwedge-oidc-ca, readOnly: true}
{{- end }}
{{- end }}
{{- end }}
