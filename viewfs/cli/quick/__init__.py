"""The quick way in: commands that open a view or ask one, with nothing imported that they don't need (no click)."""
