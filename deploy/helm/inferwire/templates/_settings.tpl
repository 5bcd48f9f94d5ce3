{{- /*
inferwire.toml: the values under `config` and what the chart knows better. Helm reads every number as a floating one; whole
ones are written as such, as a person would.
*/ -}}
{{- define "inferwire.settings" -}}
{{- $host := .Values.listenHost -}}
{{- if contains ":" $host -}}{{- $host = printf "[%s]" $host -}}{{- end -}}
{{- $own := dict "address" (printf "%s:%d" $host (int .Values.ports.grpc)) -}}
{{- $_ := set $own "probe_address" (include "inferwire.probeAddress" .) -}}
{{- if .Values.tls.enabled -}}
{{- $_ := set $own "tls_certificate" "/etc/inferwire-tls/tls.crt" -}}
{{- $_ := set $own "tls_key" "/etc/inferwire-tls/tls.key" -}}
{{- if .Values.tls.clientCA.enabled -}}
{{- $_ := set $own "tls_client_ca" (printf "/etc/inferwire-client-ca/%s" .Values.tls.clientCA.key) -}}
{{- end -}}
{{- else -}}
{{- $_ := set $own "insecure" true -}}
{{- end -}}
{{- if .Values.keys.secretName -}}
{{- $_ := set $own "keys_file" (printf "/etc/inferwire-keys/%s" .Values.keys.key) -}}
{{- end -}}
{{- if .Values.admin.separate -}}
{{- $_ := set $own "admin_address" (printf "%s:%d" (ternary $host "127.0.0.1" .Values.admin.exposed) (int .Values.ports.admin)) -}}
{{- end -}}
{{- if .Values.web.enabled -}}
{{- $_ := set $own "web_address" (printf "%s:%d" $host (int .Values.ports.web)) -}}
{{- $_ := set $own "web_origins" .Values.web.origins -}}
{{- end -}}
{{- if .Values.metrics.enabled -}}
{{- $_ := set $own "metrics_address" (printf "%s:%d" $host (int .Values.ports.metrics)) -}}
{{- end -}}
{{- if .Values.modelVolume.enabled -}}
{{- $_ := set $own "model_roots" (list .Values.modelVolume.mountPath) -}}
{{- end -}}
{{- $written := list "address" "probe_address" "insecure" "tls_certificate" "tls_key" "tls_client_ca" "keys_file" "admin_address" "web_address" "web_origins" "metrics_address" -}}
{{- range $key := concat $written (keys $own) | uniq -}}
{{- if hasKey $.Values.config $key -}}
{{- fail (printf "config.%s is written by the chart: see the values tls, keys, admin, web, metrics, ports and modelVolume" $key) -}}
{{- end -}}
{{- end -}}
{{- if lt (values .Values.ports | uniq | len) (len .Values.ports) -}}
{{- fail "ports: each number once" -}}
{{- end -}}
{{- $settings := merge $own (deepCopy .Values.config) -}}
{{- include "inferwire.makeWhole" $settings -}}
{{- toToml $settings -}}
{{- end -}}

{{- /* Changes the map that it is given, in place, and prints nothing. */ -}}
{{- define "inferwire.makeWhole" -}}
{{- $map := . -}}
{{- range $key, $value := $map -}}
{{- if kindIs "map" $value -}}
{{- include "inferwire.makeWhole" $value -}}
{{- else if kindIs "slice" $value -}}
{{- $list := list -}}
{{- range $item := $value -}}
{{- $box := dict "item" $item -}}
{{- include "inferwire.makeWhole" $box -}}
{{- $list = append $list $box.item -}}
{{- end -}}
{{- $_ := set $map $key $list -}}
{{- else if kindIs "float64" $value -}}
{{- if eq $value (floor $value) -}}
{{- $_ := set $map $key (int64 $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "inferwire.probeAddress" -}}
{{- $host := .Values.listenHost -}}
{{- if contains ":" $host -}}{{- $host = printf "[%s]" $host -}}{{- end -}}
{{- printf "%s:%d" $host (int .Values.ports.probe) -}}
{{- end -}}

{{- /* From SIGTERM to SIGKILL: what the server itself takes at most, and a margin. */ -}}
{{- define "inferwire.gracePeriodSeconds" -}}
{{- $lameDuck := dig "lame_duck_seconds" 5 .Values.config -}}
{{- $drain := dig "drain_seconds" 25 .Values.config -}}
{{- addf $lameDuck $drain .Values.graceMarginSeconds | ceil | int -}}
{{- end -}}
