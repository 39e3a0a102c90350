// SPDX-License-Identifier: Apache-2.0
// What the other files' compile times are compared with: Eigen, and one matrix product of it.
#include <Eigen/Dense>

Eigen::MatrixXd product(const Eigen::MatrixXd& a, const Eigen::MatrixXd& b) { return a * b; }
