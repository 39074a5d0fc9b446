{{/*
Every process of Ray asks for the token, but in a RayJob: KubeRay 1.4 asks the dashboard how the job goes and knows no
token. There the NetworkPolicy alone keeps others out.
*/}}
{{- define "stream-vae.rayEnv" -}}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
- {name: RAY_DEDUP_LOGS, value: "0"}
- {name: RAY_COLOR_PREFIX, value: "0"}
{{- if eq .Values.mode "rayjob" }}
- {name: RAY_AUTH_MODE, value: disabled}
{{- else }}
- {name: RAY_AUTH_MODE, value: token}
- name: RAY_AUTH_TOKEN
  valueFrom: {secretKeyRef: {name: {{ include "stream-vae.tokenSecret" . }}, key: token}}
{{- end }}
{{- end }}

{{- define "stream-vae.tokenSecret" -}}
{{- .Values.ray.existingTokenSecret | default (printf "%s-ray-token" (include "stream-vae.fullname" .)) }}
{{- end }}

{{/* Workers of the fleet come when their pods do. */}}
{{- define "stream-vae.driverEnv" -}}
{{ include "stream-vae.rayEnv" . }}
{{- if not (hasKey (.Values.settings.fleet | default dict) "wait_for_cpus") }}
- {name: STREAM_VAE_FLEET__WAIT_FOR_CPUS, value: "true"}
{{- end }}
{{- end }}

{{/* ray-logs is KubeRay's name: with autoscaling it mounts a volume of this name at /tmp/ray. */}}
{{- define "stream-vae.rayMounts" -}}
- {name: ray-logs, mountPath: /tmp/ray}
- {name: shared-mem, mountPath: /dev/shm}
{{- end }}

{{- define "stream-vae.rayVolumes" -}}
{{- $bytes := int64 .Values.ray.objectStoreBytes -}}
{{ include "stream-vae.volumes" . }}
- {name: ray-logs, emptyDir: {}}
- {name: shared-mem, emptyDir: {medium: Memory, sizeLimit: {{ add $bytes 67108864 | quote }}}}
{{- end }}

{{- define "stream-vae.apiMount" -}}
{name: api-token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end }}

{{/* A RayCluster's spec. KubeRay's own probes do: Ray asks for no token at their addresses. */}}
{{- define "stream-vae.cluster" -}}
{{- $ray := .Values.ray -}}
{{- $job := eq .Values.mode "rayjob" -}}
{{- $driver := include "stream-vae.driverEnv" . -}}
{{- $mounts := include "stream-vae.rayMounts" . -}}
rayVersion: {{ $ray.version | quote }}
{{- if $ray.autoscaling.enabled }}
enableInTreeAutoscaling: true
autoscalerOptions:
  idleTimeoutSeconds: {{ int $ray.autoscaling.idleTimeoutSeconds }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  securityContext: {{- include "stream-vae.securityContext" . | nindent 4 }}
  env: {{- include "stream-vae.rayEnv" . | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: ray-logs, mountPath: /tmp/ray}
    # The one container that talks to Kubernetes.
    - {{ include "stream-vae.apiMount" . }}
  resources: {{- toYaml $ray.autoscaling.resources | nindent 4 }}
{{- end }}
headGroupSpec:
  rayStartParams:
    num-cpus: "0"
    object-store-memory: {{ int64 $ray.objectStoreBytes | quote }}
    dashboard-host: {{ ternary "0.0.0.0" "127.0.0.1" (or $ray.exposeDashboard $job) | quote }}
  template:
    metadata: {{- include "stream-vae.podMetadata" (list . "head") | nindent 6 }}
    spec:
      {{- $pod := include "stream-vae.pod" (dict "root" . "part" $ray.head) | fromYaml }}
      {{- if $ray.autoscaling.enabled }}{{ $pod = omit $pod "serviceAccountName" }}{{ end }}
      {{- /* KubeRay makes the autoscaler's own account. */}}
      {{- toYaml $pod | nindent 6 }}
      terminationGracePeriodSeconds: {{ include "stream-vae.graceSeconds" . }}
      # A driver and its node's raylet know each other by process id.
      shareProcessNamespace: true
      {{- with include "stream-vae.waitForRelease" . }}{{ . | nindent 6 }}{{ end }}
      containers:
        - name: ray-head
          {{- include "stream-vae.container" (dict "root" . "part" dict "env" $driver "mounts" $mounts) | nindent 10 }}
          ports:
            - {name: gcs-server, containerPort: 6379}
            - {name: dashboard, containerPort: 8265}
            - {name: metrics, containerPort: 8080}
            {{- if $job }}
            - {name: http, containerPort: 9400}
            {{- end }}
          {{- if not $job }}
          # The supervisor drains the fleet, and needs Ray for it.
          lifecycle:
            preStop:
              exec: {command: [bash, -c, "while wget -q -T 2 -O /dev/null http://127.0.0.1:9400/healthz; do sleep 1; done"]}
          {{- end }}
          {{- include "stream-vae.resources" $ray.head | nindent 10 }}
        {{- if not $job }}
        - name: supervisor
          {{- include "stream-vae.container" (dict "root" . "part" dict "env" $driver "mounts" $mounts) | nindent 10 }}
          command: [bash, -c]
          args:
            - |
              until wget -q -T 2 -O /dev/null http://127.0.0.1:52365/api/local_raylet_healthz; do sleep 1; done
              exec stream-vae run --settings /etc/stream-vae/settings.toml --workers {{ int $ray.workers }} --ray-address auto
          ports: [{name: http, containerPort: 9400}]
          {{- include "stream-vae.healthProbes" . | nindent 10 }}
          readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 5, timeoutSeconds: 3}
          {{- include "stream-vae.resources" $ray.supervisor | nindent 10 }}
        {{- end }}
      volumes:
        {{- include "stream-vae.rayVolumes" . | nindent 8 }}
        {{- if $ray.autoscaling.enabled }}
        - name: api-token
          projected:
            sources:
              - serviceAccountToken: {path: token, expirationSeconds: 3600}
              - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
              - downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}
        {{- end }}
workerGroupSpecs:
  {{- range $group := $ray.groups }}
  - groupName: {{ $group.name }}
    replicas: {{ int $group.replicas }}
    minReplicas: {{ int ($group.minReplicas | default (ternary 0 $group.replicas $ray.autoscaling.enabled)) }}
    maxReplicas: {{ int ($group.maxReplicas | default $group.replicas) }}
    rayStartParams:
      num-cpus: {{ int $group.cpus | quote }}
      num-gpus: {{ int ($group.gpus | default 0) | quote }}
      object-store-memory: {{ int64 $ray.objectStoreBytes | quote }}
    template:
      metadata: {{- include "stream-vae.podMetadata" (list $ "ray-worker") | nindent 8 }}
      spec:
        {{- include "stream-vae.pod" (dict "root" $ "part" $group) | nindent 8 }}
        terminationGracePeriodSeconds: {{ include "stream-vae.graceSeconds" $ }}
        containers:
          - name: ray-worker
            {{- $env := include "stream-vae.rayEnv" $ }}
            {{- include "stream-vae.container" (dict "root" $ "part" $group "env" $env "mounts" $mounts) | nindent 12 }}
            ports: [{name: metrics, containerPort: 8080}]
            # Where all pods end at once the supervisor drains what runs here.
            lifecycle:
              preStop:
                exec: {command: [bash, -c, {{ include "stream-vae.untilDrained" $ | quote }}]}
            {{- include "stream-vae.resources" $group | nindent 12 }}
        volumes: {{- include "stream-vae.rayVolumes" $ | nindent 10 }}
  {{- end }}
{{- end }}

{{- define "stream-vae.untilDrained" -}}
for _ in $(seq {{ sub (include "stream-vae.graceSeconds" . | int) 10 }}); do grep -qsa ^ray::Worker /proc/[0-9]*/cmdline || exit 0; sleep 1; done
{{- end }}

{{/*
KubeRay changes no pod of a RayCluster that is there, and a RayJob runs once: whatever changes gets a new name, and Helm
replaces the old one. The number of replicas is no such change.
*/}}
{{- define "stream-vae.clusterName" -}}
{{- $spec := include "stream-vae.cluster" . | fromYaml }}
{{- range $group := $spec.workerGroupSpecs }}
{{- range list "replicas" "minReplicas" "maxReplicas" }}{{ $_ := unset $group . }}{{ end }}
{{- end }}
{{- printf "%s-%s" (include "stream-vae.fullname" .) (printf "%s%s%v" (toJson $spec) (toJson .Values.rayJob) .Values.ray.workers | sha256sum | trunc 8) }}
{{- end }}
