{{/* What all containers of stream_vae have: restricted Pod Security Standard. */}}
{{- define "stream-vae.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "stream-vae.env" -}}
- {name: STREAM_VAE_METRICS__HOST, value: 0.0.0.0}
- {name: STREAM_VAE_METRICS__PORT, value: "9400"}
{{- if .Values.secrets }}
- {name: STREAM_VAE_SECRETS_DIR, value: /etc/stream-vae/secrets}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* (dict "root" $ "writes" bool): only trainers write releases. */}}
{{- define "stream-vae.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: settings, mountPath: /etc/stream-vae/settings.toml, subPath: settings.toml, readOnly: true}
{{- if .root.Values.secrets }}
- {name: secrets, mountPath: /etc/stream-vae/secrets, readOnly: true}
{{- end }}
{{- if .root.Values.releaseStore.persistence.enabled }}
- {name: releases, mountPath: {{ .root.Values.settings.release.store }}, readOnly: {{ not .writes }}}
{{- end }}
{{- with .root.Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "stream-vae.volumes" -}}
{{- $name := include "stream-vae.fullname" . -}}
- {name: tmp, emptyDir: {}}
- {name: settings, configMap: {name: {{ $name }}}}
{{- with .Values.secrets }}
- name: secrets
  projected:
    sources:
      {{- range . }}
      - secret: {{- toYaml . | nindent 10 }}
      {{- end }}
{{- end }}
{{- with .Values.releaseStore.persistence }}
{{- if .enabled }}
- {name: releases, persistentVolumeClaim: {claimName: {{ .existingClaim | default (printf "%s-releases" $name) }}}}
{{- end }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* (dict "root" $ "part" .Values.worker): everything of a pod but its containers. */}}
{{- define "stream-vae.pod" -}}
serviceAccountName: {{ include "stream-vae.serviceAccount" .root }}
automountServiceAccountToken: false
# A Service's variables, STREAM_VAE_PORT and the like, would be taken for settings and refused.
enableServiceLinks: false
securityContext: {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "priorityClassName" }}
{{- with get $.part $key }}
{{ $key }}: {{ if kindIs "string" . }}{{ . }}{{ else }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}
{{- end }}
{{- end }}

{{/* (list $ "worker") */}}
{{- define "stream-vae.podMetadata" -}}
{{- $root := index . 0 -}}
labels:
  {{- include "stream-vae.selector" . | nindent 2 }}
  {{- with $root.Values.podLabels }}{{ toYaml . | nindent 2 }}{{ end }}
annotations:
  checksum/settings: {{ include "stream-vae.settings" $root | sha256sum }}
  {{- with $root.Values.podAnnotations }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}

{{/* (dict "root" $ "part" ... "train" bool "writes" bool "env" text "mounts" text): image, env, mounts, security. */}}
{{- define "stream-vae.container" -}}
image: {{ include "stream-vae.image" (dict "root" .root "train" .train "gpus" .part.gpus "image" .part.image) }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext: {{- include "stream-vae.securityContext" . | nindent 2 }}
env:
  {{- include "stream-vae.env" .root | nindent 2 }}
  {{- with .env }}{{ . | nindent 2 }}{{ end }}
volumeMounts:
  {{- include "stream-vae.mounts" . | nindent 2 }}
  {{- with .mounts }}{{ . | nindent 2 }}{{ end }}
{{- end }}

{{- define "stream-vae.resources" -}}
{{- $resources := deepCopy (.resources | default dict) }}
{{- if gt (int (default 0 .gpus)) 0 }}
{{- $_ := set $resources "limits" (merge (dict "nvidia.com/gpu" (int .gpus)) ($resources.limits | default dict)) }}
{{- end -}}
resources: {{- toYaml $resources | nindent 2 }}
{{- end }}

{{- define "stream-vae.healthProbes" -}}
# Before it listens it looks at brokers, topics and release, and compiles: minutes on a slow disk.
startupProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 5, failureThreshold: 72}
livenessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 15, timeoutSeconds: 5, failureThreshold: 4}
{{- end }}

{{/* Where a first release is being made, nothing that needs one starts before it is there. */}}
{{- define "stream-vae.waitForRelease" -}}
{{- if .Values.firstRelease.enabled }}
initContainers:
  - name: wait-for-release
    {{- include "stream-vae.container" (dict "root" . "part" dict) | nindent 4 }}
    command: [bash, -c]
    args:
      - until stream-vae --quiet releases show --store "$0" >/tmp/release 2>&1; do tail -n 1 /tmp/release; sleep 5; done
      - {{ .Values.settings.release.store }}
    resources: {requests: {cpu: 100m, memory: 256Mi}, limits: {memory: 512Mi}}
{{- end }}
{{- end }}
