{{/* Refuses what cannot work, in words; gives nothing. */}}
{{- define "arbiter.check" -}}
{{- $settings := fromToml .Values.settings -}}
{{- with $settings.Error }}{{ fail (printf "settings: this is no TOML: %s" .) }}{{ end -}}
{{- if $settings.kafka }}{{ fail "settings: [kafka] is set by the values kafka.servers, kafka.options, kafka.auth and kafka.tls; take it out" }}{{ end -}}
{{- if $settings.metrics }}{{ fail "settings: [metrics] is the chart's: probes and Prometheus ask port 9100; take it out" }}{{ end -}}
{{- range $name, $exchange := default dict $settings.exchanges -}}
{{- if hasKey $exchange "enabled" }}{{ fail (printf "settings: exchanges.%s.enabled: set the value collectors.%s.enabled, so that its collector goes, too" $name $name) }}{{ end -}}
{{- end -}}
{{- range $key := list "state_file" "weights_file" "kill_switch" -}}
{{- if hasKey (default dict $settings.decider) $key }}{{ fail (printf "settings: decider.%s is the chart's (docs/kubernetes.md says how it is used); take it out" $key) }}{{ end -}}
{{- end -}}
{{- range $key := list "max_day_usd" "max_minute_usd" -}}
{{- if hasKey (default dict $settings.decider) $key }}{{ fail (printf "settings: decider.%s counts for one decider: set the value decider.limits.%s, which the chart divides among all" $key $key) }}{{ end -}}
{{- end -}}
{{- if hasKey (default dict $settings.guards) "shadow_max_day_usd" }}{{ fail "settings: guards.shadow_max_day_usd counts for one decider: set the value decider.limits.shadow_max_day_usd, which the chart divides among all" }}{{ end -}}
{{- range $name, $provider := default dict $settings.providers -}}
{{- range $key := list "max_day_usd" "burst" "calls_per_s" "tokens_per_minute" -}}
{{- if hasKey $provider $key }}{{ fail (printf "settings: providers.%s.%s counts for one decider: set the value decider.limits.providers.%s.%s, which the chart divides among all" $name $key $name $key) }}{{ end -}}
{{- end -}}
{{- if hasKey $provider "api_key_file" }}{{ fail (printf "settings: providers.%s.api_key_file: name the Secret in the value decider.modelKeys.%s" $name $name) }}{{ end -}}
{{- if not (hasKey $.Values.decider.limits.providers $name) }}{{ fail (printf "settings: providers.%s has no limits: add decider.limits.providers.%s" $name $name) }}{{ end -}}
{{- end -}}
{{- range $name, $key := .Values.decider.modelKeys -}}
{{- if not (hasKey $.Values.decider.limits.providers $name) }}{{ fail (printf "decider.modelKeys.%s: no such provider in decider.limits.providers; there are %s" $name (keys $.Values.decider.limits.providers | sortAlpha | join ", ")) }}{{ end -}}
{{- end -}}
{{- $n := int (include "arbiter.deciders" .) -}}
{{- $one := dig "decider" "max_opportunity_usd" "0.02" $settings | float64 -}}
{{- if lt (divf (float64 .Values.decider.limits.max_minute_usd) $n) $one }}{{ fail (printf "decider.limits.max_minute_usd: %s among %d deciders is less than the %v USD that one opportunity may cost: no model would ever be asked; raise it, or have fewer deciders" (toString .Values.decider.limits.max_minute_usd) $n $one) }}{{ end -}}
{{- if and .Values.decider.keda.enabled (gt (int .Values.decider.keda.minReplicas) (int .Values.decider.keda.maxReplicas)) }}{{ fail "decider.keda.minReplicas must not be above maxReplicas" }}{{ end -}}
{{- if and .Values.detector.autoscaling.enabled (gt (int .Values.detector.autoscaling.minReplicas) (int .Values.detector.autoscaling.maxReplicas)) }}{{ fail "detector.autoscaling.minReplicas must not be above maxReplicas" }}{{ end -}}
{{- range $option, $value := .Values.kafka.options -}}
{{- if regexMatch "(password|passphrase|secret|key\\.pem)$" $option }}{{ fail (printf "kafka.options.%s: a secret stands in a Secret, not in values; kafka.auth names it" $option) }}{{ end -}}
{{- end -}}
{{- if and (eq .Values.kafka.auth.type "tls") (not .Values.kafka.tls.enabled) }}{{ fail "kafka.auth.type tls needs kafka.tls.enabled" }}{{ end -}}
{{- if eq (default .Chart.AppVersion .Values.image.tag) "latest" }}{{ fail "image.tag: latest says nothing of what runs, and cannot be rolled back; name a version" }}{{ end -}}
{{- end -}}

{{/* The settings of every pod: the user's file, then what the chart knows. Later files win. */}}
{{- define "arbiter.config" -}}
{{- include "arbiter.check" . -}}
{{- $settings := fromToml .Values.settings -}}
{{- $ports := include "arbiter.simulator.ports" . | fromYaml -}}
{{- $host := printf "%s-simulator" (include "arbiter.fullname" .) -}}
10-settings.toml: |
  {{- .Values.settings | nindent 2 }}
20-cluster.toml: |
  {{- if not (hasKey (default dict $settings.log) "json") }}
  [log]
  json = true
  {{- end }}
  {{- range $name, $collector := .Values.collectors }}
  [exchanges.{{ $name }}]
  enabled = {{ $collector.enabled }}
  {{- if $.Values.simulator.enabled }}
  ws_url = "ws://{{ $host }}:{{ get $ports $name }}{{ if eq $name "kraken" }}/v2{{ end }}"
  rest_url = "http://{{ $host }}:{{ get $ports $name }}"
  {{- if eq $name "coinbase" }}
  [exchanges.coinbase.second]
  ws_url = "ws://{{ $host }}:{{ get $ports "coinbase-exchange" }}"
  rest_url = "http://{{ $host }}:{{ get $ports "coinbase-exchange" }}"
  {{- end }}
  {{- end }}
  {{- end }}
  {{- if .Values.simulator.enabled }}
  {{- range $name, $limits := .Values.decider.limits.providers }}
  [providers.{{ $name }}]
  base_url = "http://{{ $host }}:{{ $ports.models }}/v1"
  api_key_env = "SIMULATED_KEY"
  key_pattern = ""
  {{- end }}
  {{- end }}
{{- end -}}

{{/* What only a decider is told: its state, its part of the limits, where its keys are. */}}
{{- define "arbiter.decider.env" -}}
{{- $n := int (include "arbiter.deciders" .) -}}
{{- $limits := .Values.decider.limits -}}
- {name: ARB_DECIDER_STATE_FILE, value: /var/lib/arbiter/decider.sqlite}
- {name: ARB_DECIDER_WEIGHTS_FILE, value: /run/arbiter/weights/weights.json}
- {name: ARB_DECIDER_KILL_SWITCH, value: /run/arbiter/stop/stop-trading}
- {name: ARB_DECIDER_MAX_DAY_USD, value: {{ include "arbiter.part" (dict "amount" $limits.max_day_usd "by" $n) | quote }}}
- {name: ARB_DECIDER_MAX_MINUTE_USD, value: {{ include "arbiter.part" (dict "amount" $limits.max_minute_usd "by" $n) | quote }}}
- {name: ARB_GUARDS_SHADOW_MAX_DAY_USD, value: {{ include "arbiter.part" (dict "amount" $limits.shadow_max_day_usd "by" $n) | quote }}}
{{- range $name, $provider := $limits.providers }}
{{- $table := dict
      "max_day_usd" (include "arbiter.part" (dict "amount" $provider.max_day_usd "by" $n))
      "burst" (max 1 (div (int $provider.burst) $n))
      "calls_per_s" (include "arbiter.part" (dict "amount" $provider.calls_per_s "by" $n) | float64)
      "tokens_per_minute" (max 1 (div (int $provider.tokens_per_minute) $n)) }}
{{- if and (hasKey $.Values.decider.modelKeys $name) (not $.Values.simulator.enabled) }}
{{- $_ := set $table "api_key_file" (printf "/run/secrets/models/%s" $name) }}
{{- end }}
- name: ARB_PROVIDERS_{{ upper $name }}
  value: {{ toJson $table | quote }}
{{- end }}
{{- if .Values.simulator.enabled }}
- {name: SIMULATED_KEY, value: sk-demo-0000-0000-0000}
{{- end }}
{{- end -}}
