{{- define "stream-vae.isWhole" -}}
{{- if kindIs "float64" . }}{{ if eq . (floor .) }}true{{ end }}{{ end }}
{{- end }}

{{/*
Helm reads whole numbers as floats, and 60000.0 is no value of librdkafka's: make them whole again, in place, and
leave out what is null.
*/}}
{{- define "stream-vae.wholeNumbers" -}}
{{- $table := . }}
{{- range $key, $value := $table }}
  {{- if kindIs "map" $value }}{{ include "stream-vae.wholeNumbers" $value }}
  {{- else if kindIs "invalid" $value }}{{ $_ := unset $table $key }}
  {{- else if kindIs "slice" $value }}
    {{- $items := list }}
    {{- range $value }}
      {{- if kindIs "map" . }}{{ include "stream-vae.wholeNumbers" . }}{{ end }}
      {{- if eq (include "stream-vae.isWhole" .) "true" }}{{ $items = append $items (int64 .) }}
      {{- else }}{{ $items = append $items . }}{{ end }}
    {{- end }}
    {{- $_ := set $table $key $items }}
  {{- else if eq (include "stream-vae.isWhole" $value) "true" }}{{ $_ := set $table $key (int64 $value) }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "stream-vae.settings" -}}
{{- $settings := deepCopy .Values.settings }}
{{- include "stream-vae.wholeNumbers" $settings }}
{{- toToml $settings }}
{{- end }}
