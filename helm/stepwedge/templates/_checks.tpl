{{- /* What values.schema.json cannot say: keys that need each other, or exclude each other. Each message names the key. */}}
{{- define "stepwedge.checks" -}}
{{- $values := .Values -}}
{{- if not $values.models.run }}
{{- fail "models.run is empty: there is nothing to run; name a package and a policy, as {package: /models/NAME/VERSION, policy: /models/NAME/policy.yaml}" }}
{{- end }}
{{- if and $values.models.existingClaim $values.models.image.repository }}
{{- fail "models.existingClaim and models.image.repository are both set: the packages come from one of them" }}
{{- end }}
{{- if not (or $values.models.existingClaim $values.models.image.repository) }}
{{- fail "models.existingClaim and models.image.repository are both empty: name a claim or an image with the packages" }}
{{- end }}
{{- $policies := compact (list $values.models.policies.existingClaim $values.models.policies.existingConfigMap $values.models.policies.existingSecret) }}
{{- if gt (len $policies) 1 }}
{{- fail "models.policies: existingClaim, existingConfigMap and existingSecret exclude each other; the policies come from one of them" }}
{{- end }}
{{- range $values.models.run }}
{{- if and (hasPrefix "/policies/" .policy) (not $policies) }}
{{- fail (printf "models.run: the policy %s is under /policies, and models.policies names no claim, ConfigMap or Secret for it" .policy) }}
{{- end }}
{{- end }}
{{- if and $values.trust.existingSecret $values.trust.existingConfigMap }}
{{- fail "trust.existingSecret and trust.existingConfigMap are both set: the keys come from one of them" }}
{{- end }}
{{- if and $values.trust.files (not (or $values.trust.existingSecret $values.trust.existingConfigMap)) }}
{{- fail "trust.files names keys, and neither trust.existingSecret nor trust.existingConfigMap says where they are" }}
{{- end }}
{{- if and (or $values.trust.existingSecret $values.trust.existingConfigMap) (not $values.trust.files) }}
{{- fail "trust.files is empty: name the files of the keys; without any, every result would be a demonstration" }}
{{- end }}
{{- if and $values.database.ca.existingSecret $values.database.ca.existingConfigMap }}
{{- fail "database.ca.existingSecret and database.ca.existingConfigMap are both set: the authority comes from one of them" }}
{{- end }}
{{- $node := default dict $values.settings.node }}
{{- if not $node.allowed_callers }}
{{- fail "settings.node.allowed_callers is empty: list the calling AE titles that may send studies" }}
{{- end }}
{{- if ne $values.mode "single" }}
{{- include "stepwedge.distributedChecks" . }}
{{- end }}
{{- if $values.networkPolicy.enabled }}
{{- include "stepwedge.networkChecks" . }}
{{- end }}
{{- end }}

{{- define "stepwedge.distributedChecks" -}}
{{- $values := .Values -}}
{{- if not $values.database.url }}
{{- fail "database.url is empty: mode distributed shares a PostgreSQL, as postgresql://stepwedge@db.example:5432/stepwedge; mode single does without" }}
{{- end }}
{{- if not $values.database.existingSecret }}
{{- fail "database.existingSecret is empty: name the Secret that holds the database's password" }}
{{- end }}
{{- if and $values.stepwatch.enabled (not $values.stepwatch.token.existingSecret) }}
{{- fail "stepwatch.token.existingSecret is empty: name the Secret with the token that labels and the webhook ask for (openssl rand -hex 32)" }}
{{- end }}
{{- if $values.page.enabled }}
{{- if not (or $values.page.tokens.existingSecret $values.page.oidc.issuer) }}
{{- fail "page.tokens.existingSecret and page.oidc.issuer are both empty: say how people sign in to the page, or set page.enabled to false" }}
{{- end }}
{{- if and $values.page.oidc.issuer (not (and $values.page.oidc.clientId $values.page.oidc.clientSecret.existingSecret $values.page.oidc.roles $values.page.url)) }}
{{- fail "page.oidc.issuer needs page.oidc.clientId, page.oidc.clientSecret.existingSecret, page.oidc.roles and page.url, the address that the provider sends people back to" }}
{{- end }}
{{- if and $values.page.oidc.ca.existingSecret $values.page.oidc.ca.existingConfigMap }}
{{- fail "page.oidc.ca.existingSecret and page.oidc.ca.existingConfigMap are both set: the authority comes from one of them" }}
{{- end }}
{{- if and $values.page.ingress.enabled (not $values.page.ingress.host) }}
{{- fail "page.ingress.host is empty: name the host that page.ingress answers to" }}
{{- end }}
{{- end }}
{{- if and $values.worker.autoscaling.enabled (gt (int $values.worker.autoscaling.minReplicas) (int $values.worker.autoscaling.maxReplicas)) }}
{{- fail "worker.autoscaling.minReplicas is more than worker.autoscaling.maxReplicas" }}
{{- end }}
{{- end }}

{{- define "stepwedge.networkChecks" -}}
{{- $values := .Values -}}
{{- $policy := $values.networkPolicy -}}
{{- if not $policy.senders }}
{{- fail "networkPolicy.senders is empty: nobody could send studies; list the CIDRs of the senders, or set networkPolicy.enabled to false" }}
{{- end }}
{{- range $values.settings.destinations }}
{{- if not (or (regexMatch "^[0-9]+(\\.[0-9]+){3}$" .host) $policy.destinations) }}
{{- fail (printf "networkPolicy.destinations is empty, and the destination %s has a name for a host: list the CIDRs it may have" .name) }}
{{- end }}
{{- end }}
{{- if ne $values.mode "single" }}
{{- if not $policy.database }}
{{- fail "networkPolicy.database is empty: name the database's peers, as [{ipBlock: {cidr: 10.0.0.7/32}}]" }}
{{- end }}
{{- if and (or $values.monitoring.serviceMonitor.enabled $values.monitoring.scrapeAnnotations) (not $policy.prometheus) }}
{{- fail "networkPolicy.prometheus is empty: Prometheus could not ask for metrics; name its peers, as [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]" }}
{{- end }}
{{- if and $values.page.enabled $values.page.ingress.enabled (not $policy.page) }}
{{- fail "networkPolicy.page is empty: the ingress controller could not reach the page; name its peers" }}
{{- end }}
{{- if and $values.page.enabled $values.page.oidc.issuer (not $policy.oidc) }}
{{- fail "networkPolicy.oidc is empty: name the peers of the provider that page.oidc.issuer names, as [{ipBlock: {cidr: 10.0.0.8/32}}]" }}
{{- end }}
{{- end }}
{{- $tracing := default dict $values.settings.tracing }}
{{- if and $tracing.endpoint (not $policy.collector) }}
{{- fail "networkPolicy.collector is empty: name the peers of the collector that settings.tracing.endpoint names" }}
{{- end }}
{{- end }}
