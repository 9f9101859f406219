"""What an operator's edited Envoy configuration must keep, proven before it is deployed.

document   a YAML file as Envoy reads it, with lines
typed      the same as `envoy-data-plane`'s typed objects
site       bootstrap and clusters together; rules and findings
edge, filters, routes, bodies, upstreams    the rules
proof      files in, findings out; `envoy --mode validate`
command    `paddock check`
"""
