"""From Cedar policies and facts to a finding: inventory, schema, slices, answers, bundles, cases."""
