# SPDX-License-Identifier: Apache-2.0
"""The engine of all recipes that pretrain a backbone: it loads data, trains, scores, reports, resumes and exports."""
