{{- define "stream-vae.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* Short enough for what is appended to it, and for KubeRay, which takes 47 characters. */}}
{{- define "stream-vae.fullname" -}}
{{- $name := include "stream-vae.name" . }}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- default $full .Values.fullnameOverride | trunc 38 | trimSuffix "-" }}
{{- end }}

{{/* Of one part of the release: (list $ "worker"). */}}
{{- define "stream-vae.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "stream-vae.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name | trunc 63 }}
{{- with index . 1 }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{- define "stream-vae.labels" -}}
{{- $root := index . 0 -}}
{{ include "stream-vae.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/part-of: stream-vae
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "stream-vae.metadata" -}}
name: {{ include "stream-vae.fullname" (index . 0) }}{{ with index . 2 }}-{{ . }}{{ end }}
labels: {{- include "stream-vae.labels" . | nindent 2 }}
{{- end }}

{{/* (dict "root" $ "train" bool "gpus" n "image" override) */}}
{{- define "stream-vae.image" -}}
{{- $image := .root.Values.image }}
{{- $tag := printf "%s%s%s" ($image.tag | default .root.Chart.AppVersion) (ternary "-train" "" (default false .train))
      (ternary "-gpu" "" (gt (int (default 0 .gpus)) 0)) }}
{{- .image | default (printf "%s:%s" $image.repository $tag) }}
{{- end }}

{{- define "stream-vae.serviceAccount" -}}
{{- $account := .Values.serviceAccount }}
{{- $account.name | default (ternary (include "stream-vae.fullname" .) "default" $account.create) }}
{{- end }}

{{/* What of the settings the chart itself goes by, with stream_vae's defaults. */}}
{{- define "stream-vae.exactlyOnce" -}}
{{- if eq (dig "delivery" "mode" "at_least_once" .Values.settings) "exactly_once" }}true{{ end }}
{{- end }}

{{- define "stream-vae.groupId" -}}
{{- dig "kafka" "group_id" "stream-vae" .Values.settings }}
{{- end }}

{{/* To finish the batch, have it acknowledged (delivery.drain_timeout_s), and leave the group. */}}
{{- define "stream-vae.graceSeconds" -}}
{{- add (dig "delivery" "drain_timeout_s" 20 .Values.settings | ceil | int) 40 }}
{{- end }}
