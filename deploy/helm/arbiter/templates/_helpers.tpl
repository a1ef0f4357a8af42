{{- define "arbiter.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "arbiter.fullname" -}}
{{- $name := include "arbiter.name" . -}}
{{- if .Values.fullnameOverride -}}{{ .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains $name .Release.Name -}}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}{{ printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{/* What finds the pods: takes root and, if given, component and exchange. */}}
{{- define "arbiter.selector" -}}
app.kubernetes.io/name: {{ include "arbiter.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- with .exchange }}
exchange: {{ . }}
{{- end }}
{{- with .shard }}
shard: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "arbiter.labels" -}}
{{ include "arbiter.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end -}}

{{- define "arbiter.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}{{ $image.repository }}@{{ $image.digest }}
{{- else -}}{{ $image.repository }}:{{ default .Chart.AppVersion $image.tag }}
{{- end -}}
{{- end -}}

{{/* The most deciders that there can be: each gets that part of every limit. */}}
{{- define "arbiter.deciders" -}}
{{- if .Values.decider.keda.enabled }}{{ .Values.decider.keda.maxReplicas }}{{ else }}{{ max 1 (int .Values.decider.replicas) }}{{ end -}}
{{- end -}}

{{/* An amount divided by a number, rounded down to a millionth: "20" and 8 give 2.500000. */}}
{{- define "arbiter.part" -}}
{{- $micro := div (round (mulf (float64 .amount) 1000000) 0 | int64) .by -}}
{{- printf "%d.%06d" (div $micro 1000000) (mod $micro 1000000) -}}
{{- end -}}

{{/* Kafka's user of a service, and the Secret with its password or certificate. */}}
{{- define "arbiter.kafka.user" -}}
{{- dig .user "name" .user (default dict .root.Values.kafka.auth.users) -}}
{{- end -}}
{{- define "arbiter.kafka.secret" -}}
{{- dig .user "secret" (printf "%s%s" .root.Values.kafka.auth.secretPrefix .user) (default dict .root.Values.kafka.auth.users) -}}
{{- end -}}

{{/* Variables that lead a client to Kafka. Passwords stand in files only. */}}
{{- define "arbiter.kafka.env" -}}
{{- $kafka := .root.Values.kafka -}}
{{- $options := deepCopy (default dict $kafka.options) -}}
{{- $files := dict -}}
{{- if and $kafka.tls.enabled $kafka.tls.caSecret }}{{ $_ := set $options "ssl.ca.location" "/run/secrets/kafka-ca/ca.crt" }}{{ end -}}
{{- if eq $kafka.auth.type "sasl" -}}
{{- $_ := set $options "security.protocol" (ternary "SASL_SSL" "SASL_PLAINTEXT" $kafka.tls.enabled) -}}
{{- $_ := set $options "sasl.mechanism" $kafka.auth.mechanism -}}
{{- $_ := set $options "sasl.username" (include "arbiter.kafka.user" .) -}}
{{- $_ := set $files "sasl.password" "/run/secrets/kafka/password" -}}
{{- else if eq $kafka.auth.type "tls" -}}
{{- $_ := set $options "security.protocol" "SSL" -}}
{{- $_ := set $options "ssl.certificate.location" "/run/secrets/kafka/user.crt" -}}
{{- $_ := set $options "ssl.key.location" "/run/secrets/kafka/user.key" -}}
{{- else if $kafka.tls.enabled -}}
{{- $_ := set $options "security.protocol" "SSL" -}}
{{- end -}}
- name: ARB_KAFKA_SERVERS
  value: {{ $kafka.servers | quote }}
- name: ARB_KAFKA_GROUP_PROTOCOL
  value: {{ $kafka.groupProtocol }}
- name: ARB_KAFKA_OPTIONS
  value: {{ $options | toJson | quote }}
- name: ARB_KAFKA_OPTION_FILES
  value: {{ $files | toJson | quote }}
{{- end -}}

{{- define "arbiter.kafka.volumes" -}}
{{- $kafka := .root.Values.kafka -}}
{{- if ne $kafka.auth.type "none" }}
- name: kafka
  secret:
    secretName: {{ include "arbiter.kafka.secret" . }}
    defaultMode: 0440
    items:
      {{- if eq $kafka.auth.type "sasl" }}
      - {key: {{ $kafka.auth.passwordKey }}, path: password}
      {{- else }}
      - {key: user.crt, path: user.crt}
      - {key: user.key, path: user.key}
      {{- end }}
{{- end }}
{{- if and $kafka.tls.enabled $kafka.tls.caSecret }}
- name: kafka-ca
  secret:
    secretName: {{ $kafka.tls.caSecret }}
    defaultMode: 0440
    items: [{key: {{ $kafka.tls.caKey }}, path: ca.crt}]
{{- end }}
{{- end -}}

{{- define "arbiter.kafka.mounts" -}}
{{- $kafka := .root.Values.kafka -}}
{{- if ne $kafka.auth.type "none" }}
- {name: kafka, mountPath: /run/secrets/kafka, readOnly: true}
{{- end }}
{{- if and $kafka.tls.enabled $kafka.tls.caSecret }}
- {name: kafka-ca, mountPath: /run/secrets/kafka-ca, readOnly: true}
{{- end }}
{{- end -}}

{{- define "arbiter.pod.security" -}}
automountServiceAccountToken: false
enableServiceLinks: false  # a Service called arb would give pods ARB_... variables, which are settings
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "arbiter.container.security" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{/*
The pod of a service. Takes root, component, values (of the service), args, user (of Kafka; none: no Kafka), and
exchange, shard, env, ports, volumes, mounts where there are any.
*/}}
{{- define "arbiter.pod" -}}
{{- $root := .root -}}
{{- $pod := mergeOverwrite (deepCopy $root.Values.pod) (deepCopy (default dict .values.pod)) -}}
metadata:
  labels:
    {{- include "arbiter.labels" . | nindent 4 }}
    {{- with $pod.labels }}{{ toYaml . | nindent 4 }}{{ end }}
  annotations:
    checksum/settings: {{ include "arbiter.config" $root | sha256sum }}
    {{- with $pod.annotations }}{{ toYaml . | nindent 4 }}{{ end }}
spec:
  serviceAccountName: {{ include "arbiter.fullname" $root }}
  {{- include "arbiter.pod.security" . | nindent 2 }}
  terminationGracePeriodSeconds: {{ $pod.terminationGracePeriodSeconds }}
  {{- with $root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- with $pod.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $pod.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $pod.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $pod.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $pod.spreadOver }}
  topologySpreadConstraints:
    {{- range . }}
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels: {{- include "arbiter.selector" (dict "root" $root "component" $.component) | nindent 10 }}
    {{- end }}
  {{- end }}
  containers:
    - name: {{ .component }}
      image: {{ include "arbiter.image" $root }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args: {{ toJson .args }}
      {{- include "arbiter.container.security" . | nindent 6 }}
      env:
        - {name: ARB_CONFIG, value: /etc/arbiter}
        - {name: ARB_CACHE_DIR, value: /var/cache/arbiter}
        - {name: ARB_METRICS_HOST, value: 0.0.0.0}
        - {name: ARB_METRICS_PORT, value: "9100"}
        {{- if .user }}{{ include "arbiter.kafka.env" . | nindent 8 }}{{ end }}
        {{- with .env }}{{ . | nindent 8 }}{{ end }}
        {{- with $pod.env }}{{ toYaml . | nindent 8 }}{{ end }}
      ports:
        - {name: metrics, containerPort: 9100}
        {{- range $name, $port := .ports }}
        - {name: {{ $name }}, containerPort: {{ $port }}}
        {{- end }}
      startupProbe:
        httpGet: {path: /healthz, port: metrics}
        periodSeconds: 2
        timeoutSeconds: 3
        failureThreshold: 45
      livenessProbe:
        httpGet: {path: /healthz, port: metrics}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 3
      readinessProbe:
        httpGet: {path: /readyz, port: metrics}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 3
      resources: {{- toYaml .values.resources | nindent 8 }}
      volumeMounts:
        - {name: settings, mountPath: /etc/arbiter, readOnly: true}
        - {name: cache, mountPath: /var/cache/arbiter}
        - {name: tmp, mountPath: /tmp}
        {{- if .user }}{{ include "arbiter.kafka.mounts" . | indent 8 }}{{ end }}
        {{- with .mounts }}{{ . | nindent 8 }}{{ end }}
  volumes:
    - name: settings
      configMap: {name: {{ include "arbiter.fullname" $root }}}
    - name: cache
      emptyDir: {sizeLimit: 64Mi}
    - name: tmp
      emptyDir: {sizeLimit: 64Mi}
    {{- if .user }}{{ include "arbiter.kafka.volumes" . | indent 4 }}{{ end }}
    {{- with .volumes }}{{ . | nindent 4 }}{{ end }}
{{- end -}}

{{/* A pod that asks Kafka one thing and ends: takes root, args, name. */}}
{{- define "arbiter.task" -}}
{{- $root := .root -}}
{{- $context := dict "root" $root "user" "operator" -}}
{{- include "arbiter.pod.security" . }}
restartPolicy: Never
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $root.Values.pod.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.pod.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
containers:
  - name: {{ .name }}
    image: {{ include "arbiter.image" $root }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    args: {{ toJson .args }}
    {{- include "arbiter.container.security" . | nindent 4 }}
    env:
      - {name: ARB_METRICS_PORT, value: "0"}
      {{- include "arbiter.kafka.env" $context | nindent 6 }}
    resources:
      requests: {cpu: 100m, memory: 128Mi}
      limits: {cpu: "1", memory: 256Mi}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
      {{- include "arbiter.kafka.mounts" $context | indent 6 }}
volumes:
  - name: tmp
    emptyDir: {sizeLimit: 64Mi}
  {{- include "arbiter.kafka.volumes" $context | indent 2 }}
{{- end -}}

{{/* Where the simulator serves what. */}}
{{- define "arbiter.simulator.ports" -}}
{binance: 9001, coinbase: 9002, coinbase-exchange: 9003, kraken: 9004, bybit: 9005, okx: 9006, models: 9007}
{{- end -}}
