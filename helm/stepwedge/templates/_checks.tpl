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
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" (include "stepwedge.fullname" .)) }}
{{- fail (printf "fullnameOverride, or else the release's name, makes the name %s, which no Service may have: small letters, digits and hyphens, a letter first" (include "stepwedge.fullname" .)) }}
{{- end }}
{{- $labels := fromYaml (include "stepwedge.labels" (list . "")) }}
{{- range $label, $_ := $values.podLabels }}
{{- if hasKey $labels $label }}
{{- fail (printf "podLabels has %s, which the chart sets itself: Services, StatefulSets and network policies find the pods by it" $label) }}
{{- end }}
{{- end }}
{{- if and $values.listener.service.loadBalancerClass (ne $values.listener.service.type "LoadBalancer") }}
{{- fail (printf "listener.service.loadBalancerClass is set, and listener.service.type is %s: only a LoadBalancer has one" $values.listener.service.type) }}
{{- end }}
{{- $image := $values.images.inference }}
{{- if and $values.inference.gpu.enabled (not (or $image.repository $image.tag $image.digest)) }}
{{- fail "images.inference is empty, and inference.gpu.enabled asks for a GPU: name the image with CUDA, as {tag: 0.1.0-cuda}" }}
{{- end }}
{{- $node := default dict $values.settings.node }}
{{- if not $node.allowed_callers }}
{{- fail "settings.node.allowed_callers is empty: list the calling AE titles that may send studies" }}
{{- end }}
{{- $retrain := default dict $values.stepwatch.settings.retrain }}
{{- $there := list "/models/" "/policies/" "/data/" }}
{{- range $mount, $_ := $values.stepwatch.mounts }}{{ $there = append $there (printf "/mnt/%s/" $mount) }}{{ end }}
{{- range $key := list "keys" "retired_keys" "trusted_keys" "webhook_key_file" "locked_data" "locked_labels" }}
{{- $paths := get $retrain $key }}
{{- range compact (kindIs "slice" $paths | ternary $paths (list $paths)) }}
{{- $path := printf "%s/" . }}
{{- $is := false }}
{{- range $there }}{{ if hasPrefix . $path }}{{ $is = true }}{{ end }}{{ end }}
{{- if not $is }}
{{- fail (printf "stepwatch.settings.retrain.%s names %s, which the monitor's pod does not have: name what holds it in stepwatch.mounts, as {keys: {existingConfigMap: retraining-keys}}, and the path as /mnt/keys/…" $key .) }}
{{- end }}
{{- end }}
{{- end }}
{{- if eq $values.mode "single" }}
{{- include "stepwedge.singleChecks" . }}
{{- else }}
{{- include "stepwedge.distributedChecks" . }}
{{- end }}
{{- if $values.networkPolicy.enabled }}
{{- include "stepwedge.networkChecks" . }}
{{- end }}
{{- end }}

{{- define "stepwedge.singleChecks" -}}
{{- $monitoring := .Values.monitoring -}}
{{- $asked := dict "serviceMonitor.enabled" $monitoring.serviceMonitor.enabled "scrapeAnnotations" $monitoring.scrapeAnnotations }}
{{- $_ := set $asked "rules.kind" (ne $monitoring.rules.kind "none") }}
{{- $_ := set $asked "dashboards.enabled" $monitoring.dashboards.enabled }}
{{- range $key, $is := $asked }}
{{- if $is }}
{{- fail (printf "monitoring.%s is set, and in mode single Prometheus cannot reach the metrics: they are on the pod's loopback, and rules would tell of roles that are away" $key) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "stepwedge.distributedChecks" -}}
{{- $values := .Values -}}
{{- if and (not $values.data.existingClaim) (has "ReadWriteOncePod" $values.data.accessModes) }}
{{- fail "data.accessModes has ReadWriteOncePod: in mode distributed several pods share the volume; ReadWriteMany lets them" }}
{{- end }}
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
